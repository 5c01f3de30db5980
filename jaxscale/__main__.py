"""`python -m jaxscale`: the command where its script is not on the PATH."""

from jaxscale.cli.main import run

if __name__ == "__main__":
    run()
