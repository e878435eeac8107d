"""REDS validation (Nah 2019). Run: python data_scripts/reds.py --help"""

from fetch import command

if __name__ == "__main__":
    command("reds")
