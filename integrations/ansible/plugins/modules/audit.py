#!/usr/bin/python
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Audit of images."""

DOCUMENTATION = r"""
module: audit
short_description: Audit QCOW2 images and their backing files
description:
  - Runs C(qcowtool audit) and returns its report. Changes nothing.
options:
  paths:
    description: Directories or images to audit.
    type: list
    elements: path
    required: true
  fail_on:
    description: Severity of findings from which on the task fails.
    type: str
    choices: [error, warning, never]
    default: error
  binary:
    description: Path or name of qcowtool.
    type: path
    default: qcowtool
  options:
    description: Further options of the command.
    type: list
    elements: str
author: The qcowtool contributors
"""

EXAMPLES = r"""
- qcowtool.kvm.audit:
    paths: [/var/lib/libvirt/images]
    fail_on: never
  register: images
"""

RETURN = r"""
report:
  description: The report as C(qcowtool audit --output json) prints it.
  returned: always
  type: dict
findings:
  description: The findings alone.
  returned: always
  type: list
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.qcowtool.kvm.plugins.module_utils.qcowtool import BINARY, run

FAILING = {"error": ("error",), "warning": ("error", "warning"), "never": ()}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            paths=dict(type="list", elements="path", required=True),
            fail_on=dict(type="str", choices=sorted(FAILING), default="error"),
            binary=BINARY,
            options=dict(type="list", elements="str"),
        ),
        supports_check_mode=True,
    )
    words = ["audit"] + (module.params["options"] or []) + module.params["paths"]
    _code, report = run(module, words, ok=(0, 2))
    findings = report.get("findings", [])
    failing = [it for it in findings if it.get("severity") in FAILING[module.params["fail_on"]]]
    result = dict(changed=False, report=report, findings=findings)
    if failing:
        module.fail_json(msg="%d findings: %s" % (len(failing), failing[0].get("message")), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
