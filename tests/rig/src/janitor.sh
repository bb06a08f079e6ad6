# shellcheck shell=bash
# Takes a rig away when its owner is gone, however that went: the other end of standard input is the
# owner's. Usage: bash -c "$(cat janitor.sh)" janitor.sh DIRECTORY
directory=$1
while read -r _; do :; done

for file in "$directory"/?/pid; do
  read -r pid 2>/dev/null <"$file" || continue
  # The number may belong to somebody else by now; ours has the directory among its words.
  grep -aqF "$directory" "/proc/$pid/cmdline" 2>/dev/null || continue
  kill -KILL "$pid"
  for _ in {1..100}; do
    [ -e "/proc/$pid" ] || break
    sleep 0.05
  done
done

# A device may be busy for a moment longer than who used it.
for _ in {1..20}; do
  left=$(losetup --noheadings --output NAME,BACK-FILE 2>/dev/null | grep -F "$directory/" | cut -d ' ' -f 1)
  [ -n "$left" ] || break
  # shellcheck disable=SC2086 # one word for each device
  losetup --detach $left 2>/dev/null
  sleep 0.05
done
rm -rf -- "$directory"
