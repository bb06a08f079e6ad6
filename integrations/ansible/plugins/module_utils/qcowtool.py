# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the modules share: running qcowtool on the managed host, and reading its JSON."""

import json

# Exit codes of the commands that move guests (docs/exit-codes.md).
MEANINGS = {
    1: "the arguments were not understood",
    2: "refused, or without room",
    3: "a host has changed since it was planned",
    4: "the content at the destination is not what it must be",
    5: "it is not known on which host a guest runs; nothing was deleted",
    6: "a host, a file or a service failed",
}

BINARY = dict(type="path", default="qcowtool")
STATE = dict(type="path")
CONNECT = dict(type="str")


def run(module, words, ok=(0,)):
    """Runs `qcowtool WORDS --output json` and gives its exit code and its result; fails the task for any code but `ok`."""
    binary = module.params["binary"]
    if "/" not in binary:
        binary = module.get_bin_path(binary, required=True)
    command = [binary] + [str(word) for word in words] + ["--output", "json"]
    code, out, err = module.run_command(command)
    try:
        result = json.loads(out) if out.strip() else None
    except ValueError:
        result = None
    if code not in ok:
        meaning = MEANINGS.get(code, "it ended with exit code %d" % code)
        module.fail_json(msg="%s: %s" % (words[0], message(err) or meaning), rc=code, meaning=meaning, result=result,
                         cmd=command, stderr=err)
    return code, result


def message(err):
    """What an error says: one JSON object on standard error, among other lines."""
    start = err.find('{\n    "error"')
    try:
        error = json.loads(err[start:])["error"] if start >= 0 else {}
    except ValueError:
        return err.strip()
    parts = [error.get("message"), error.get("hint")]
    return "; ".join(part for part in parts if part)


def add(words, name, value):
    """Adds an option, if it has a value."""
    if value is True:
        words.append(name)
    elif isinstance(value, (list, tuple)):
        for one in value:
            words.extend([name, one])
    elif value not in (None, False, ""):
        words.extend([name, value])


def route(module):
    """The options that say where guests are and where they go."""
    words = []
    for name in ("connect", "rsh", "rsh_program", "state_dir", "policy", "target_dir", "verify", "bandwidth"):
        add(words, "--" + name.replace("_", "-"), module.params.get(name))
    add(words, "--map-path", module.params.get("map_path"))
    add(words, "--mkdir", module.params.get("mkdir"))
    return words + list(module.params.get("options") or [])


def route_arguments():
    """Their argument specification."""
    return dict(
        binary=BINARY,
        state_dir=STATE,
        connect=CONNECT,
        rsh=dict(type="str"),
        rsh_program=dict(type="str"),
        policy=dict(type="str", choices=["auto", "thin", "full"]),
        target_dir=dict(type="path"),
        map_path=dict(type="list", elements="str"),
        mkdir=dict(type="bool", default=False),
        verify=dict(type="str", choices=["none", "meta", "sample", "content"]),
        bandwidth=dict(type="str"),
        options=dict(type="list", elements="str"),
    )
