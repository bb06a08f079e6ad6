#!/usr/bin/python
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whether guests can migrate."""

DOCUMENTATION = r"""
module: preflight
short_description: Check whether a host's guests can migrate to another host
description:
  - Runs C(qcowtool preflight) on the host that the guests are on. Changes nothing.
options:
  to:
    description: libvirt URI of the destination.
    type: str
    required: true
  guests:
    description: Names or UUIDs of guests; all of them if left out.
    type: list
    elements: str
  fail_on_red:
    description: Fail if an obstacle is found.
    type: bool
    default: true
extends_documentation_fragment: []
author: The qcowtool contributors
notes:
  - C(binary), C(state_dir), C(connect), C(rsh), C(rsh_program), C(policy), C(target_dir), C(map_path), C(mkdir), C(verify), C(bandwidth) and
    C(options) are as those of M(qcowtool.kvm.evacuate).
"""

EXAMPLES = r"""
- qcowtool.kvm.preflight:
    to: qemu+tls://host-b/system
    rsh: ssh host-b
  register: checked
"""

RETURN = r"""
report:
  description: The report as C(qcowtool preflight --output json) prints it.
  returned: always
  type: dict
ready:
  description: Names of the guests that can go, in the recommended order.
  returned: always
  type: list
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.qcowtool.kvm.plugins.module_utils.qcowtool import route, route_arguments, run


def main():
    module = AnsibleModule(
        argument_spec=dict(
            route_arguments(),
            to=dict(type="str", required=True),
            guests=dict(type="list", elements="str"),
            fail_on_red=dict(type="bool", default=True),
        ),
        supports_check_mode=True,
    )
    guests = module.params["guests"] or ["--all"]
    words = ["preflight"] + guests + ["--to", module.params["to"]] + route(module)
    code, report = run(module, words, ok=(0, 2))
    ready = [it["name"] for it in report["guests"] if it.get("order") is not None]
    result = dict(changed=False, report=report, ready=ready)
    if code != 0 and module.params["fail_on_red"]:
        total = report["total"]
        module.fail_json(msg="%d of %d guests can go" % (total["ready"], total["guests"]), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
