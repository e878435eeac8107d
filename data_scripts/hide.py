"""HIDE (Shen 2019). Run: python data_scripts/hide.py --help"""

from fetch import command

if __name__ == "__main__":
    command("hide")
