"""Compares deckswain with what would be used instead, in one run, as ratios.

    compare.py ROUNDS [--only ROW,...]

Five rounds or more are the full form, and write docs/benchmarks.md when all rows are measured;
fewer are the quick form with small counts. A row is named in full or by how its name begins.
The broker, the deckies and the programs are those of the environment that scripts/bench sets.
"""
import argparse
import sys

import report
import rows


def arguments():
    parser = argparse.ArgumentParser(prog="compare.py")
    parser.add_argument("rounds", type=int)
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="ROW,...")
    return parser.parse_args()


def main():
    asked = arguments()
    full = asked.rounds >= rows.FULL_ROUNDS
    made = rows.rows(rows.FULL if full else rows.QUICK)
    if asked.only:
        names = [row.name for row in made]
        made = [row for row in made if row.name.startswith(tuple(asked.only))]
        if not made:
            sys.exit(f"there is no such row; there are {', '.join(names)}")
    chosen = f"ROWS={','.join(asked.only)} " if asked.only else ""
    command = f"{chosen}ROUNDS={asked.rounds} make bench"
    parts = [report.head(asked.rounds, command)]
    print(parts[0], flush=True)
    measured = {}
    for row in made:
        measured[row.name] = row.run(asked.rounds)
        parts.append(report.table(row, measured[row.name]))
        print(parts[-1], flush=True)
    parts.insert(1, report.targets(measured))
    print(parts[1])
    if full and not asked.only:
        report.write(parts)


main()
