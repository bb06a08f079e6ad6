#!/usr/bin/python
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Emptying a host."""

DOCUMENTATION = r"""
module: evacuate
short_description: Migrate all guests of a host to one or several others
description:
  - Runs C(qcowtool evacuate) on the host that is emptied. In check mode it prints the plan (C(--dry-run)).
  - Run it with C(serial) or C(throttle) of 1 for hosts that share destinations, because one evacuation does not know of the other.
options:
  to:
    description: libvirt URIs of the destinations.
    type: list
    elements: str
  resume:
    description: Go on with the last evacuation of this host instead.
    type: bool
    default: false
  guests:
    description: Names or UUIDs of guests; all of them if left out.
    type: list
    elements: str
  parallel:
    description: So many guests at a time.
    type: int
  before:
    description: Program on the managed host that is run before each guest.
    type: path
  after:
    description: Program on the managed host that is run after each guest.
    type: path
  metrics:
    description: File for metrics in Prometheus' text format.
    type: path
  allow_partial:
    description: Do not fail if some guests stay because they cannot go.
    type: bool
    default: false
  binary:
    description: Path or name of qcowtool.
    type: path
    default: qcowtool
  state_dir:
    description: Directory of journals.
    type: path
  connect:
    description: libvirt URI of the host that is emptied.
    type: str
  rsh:
    description: Command that reaches the destinations, such as C(ssh {host}).
    type: str
  rsh_program:
    description: Path of qcowtool there.
    type: str
  policy:
    description: Whether overlays are kept.
    type: str
    choices: [auto, thin, full]
  target_dir:
    description: Directory for new images.
    type: path
  map_path:
    description: Path changes, C(OLD=NEW).
    type: list
    elements: str
  mkdir:
    description: Make directories that a destination lacks, with owner, mode and SELinux label of the source's.
    type: bool
    default: false
  verify:
    description: How much is compared.
    type: str
    choices: [none, meta, sample, content]
  bandwidth:
    description: Bytes a second for all guests together.
    type: str
  options:
    description: Further options of the command.
    type: list
    elements: str
author: The qcowtool contributors
"""

EXAMPLES = r"""
- name: Empty the host before its kernel is updated
  qcowtool.kvm.evacuate:
    to: [qemu+tls://host-b/system, qemu+tls://host-c/system]
    rsh: ssh {host}
    parallel: 4
    bandwidth: 800M
"""

RETURN = r"""
report:
  description: The report as C(qcowtool evacuate --output json) prints it; the plan in check mode.
  returned: always
  type: dict
moved:
  description: Names of the guests that moved; in check mode of those that would.
  returned: always
  type: list
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.qcowtool.kvm.plugins.module_utils.qcowtool import add, route, route_arguments, run


def main():
    module = AnsibleModule(
        argument_spec=dict(
            route_arguments(),
            to=dict(type="list", elements="str"),
            resume=dict(type="bool", default=False),
            guests=dict(type="list", elements="str"),
            parallel=dict(type="int"),
            before=dict(type="path"),
            after=dict(type="path"),
            metrics=dict(type="path"),
            allow_partial=dict(type="bool", default=False),
        ),
        required_one_of=[("to", "resume")],
        supports_check_mode=True,
    )
    params = module.params
    words = ["evacuate"]
    if params["resume"]:
        if module.check_mode:
            module.exit_json(changed=True, report={}, moved=[], skipped=True)
        add(words, "--state-dir", params["state_dir"])
        add(words, "--metrics", params["metrics"])
        words.append("--resume")
    else:
        if not params["to"]:
            module.fail_json(msg="'to' names no destination")
        add(words, "--to", params["to"])
        add(words, "--guest", params["guests"])
        for name in ("parallel", "before", "after", "metrics"):
            add(words, "--" + name, params[name])
        words += route(module)
        add(words, "--dry-run", module.check_mode)
    code, report = run(module, words, ok=(0, 2))
    moved = [it["name"] for it in report["guests"] if module.check_mode or it["ending"] == "moved"]
    result = dict(changed=bool(moved), report=report, moved=moved)
    if code != 0 and not params["allow_partial"]:
        stay = [it["name"] for it in report["refused"]]
        stay += [it["name"] for it in report["guests"] if it.get("ending", "moved") != "moved"]
        module.fail_json(msg="some guests stay: %s" % ", ".join(stay), rc=code, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
