"""Kodak24, 24 photographs to judge on. Run: python data_scripts/kodak24.py --help"""

from fetch import command

if __name__ == "__main__":
    command("kodak24")
