"""Keeps what it is told, one note a message: an agent of one process per turn with a memory.

Text comes on standard input, the reply goes to standard output. The notes are a file in the current
folder, which is the session's workspace. Exit status 2: there was nothing to note.
"""

import pathlib
import sys

NOTES = pathlib.Path("notes.txt")


def main():
    note = " ".join(sys.stdin.read().split())
    if not note:
        print("there is no text to note", file=sys.stderr)
        return 2
    with NOTES.open("a", encoding="utf-8") as file:
        file.write(note + "\n")
    notes = NOTES.read_text(encoding="utf-8").splitlines()
    print("%d %s: %s" % (len(notes), "note" if len(notes) == 1 else "notes", "; ".join(notes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
