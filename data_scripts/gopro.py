"""GoPro (Nah 2017). Run: python data_scripts/gopro.py --help"""

from fetch import command

if __name__ == "__main__":
    command("gopro")
