#!/usr/bin/python
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Facts about qcowtool on a host."""

DOCUMENTATION = r"""
module: qcowtool_facts
short_description: Gather what qcowtool is and has open on a host
description:
  - Sets the fact C(qcowtool) with the program's version, runs of migrations that have not ended, and whether libvirt's hook is installed.
options:
  binary:
    description: Path or name of qcowtool.
    type: path
    default: qcowtool
  state_dir:
    description: Directory of journals.
    type: path
author: The qcowtool contributors
"""

EXAMPLES = r"""
- qcowtool.kvm.qcowtool_facts:
- ansible.builtin.assert:
    that: qcowtool.open_transactions | length == 0
"""

RETURN = r"""
ansible_facts:
  description: The fact C(qcowtool) with C(installed), C(path), C(version), C(open_transactions), C(hook_works).
  returned: always
  type: dict
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.qcowtool.kvm.plugins.module_utils.qcowtool import BINARY, STATE


def main():
    module = AnsibleModule(argument_spec=dict(binary=BINARY, state_dir=STATE), supports_check_mode=True)
    binary = module.params["binary"]
    path = binary if "/" in binary else module.get_bin_path(binary)
    facts = dict(installed=False, path=path, version=None, open_transactions=[], hook_works=None)
    code, out = 1, ""
    if path:
        try:
            code, out, _err = module.run_command([path, "--version"], handle_exceptions=False)
        except (OSError, IOError):
            code = 1
    if code == 0:
        facts.update(installed=True, version=out.split()[-1])
        words = [path, "transactions", "--open", "--output", "json"]
        if module.params["state_dir"]:
            words += ["--state-dir", module.params["state_dir"]]
        code, out, _err = module.run_command(words)
        if code == 0:
            facts["open_transactions"] = json.loads(out)
        facts["hook_works"] = module.run_command([path, "hook", "status"])[0] == 0
    module.exit_json(changed=False, ansible_facts=dict(qcowtool=facts))


if __name__ == "__main__":
    main()
