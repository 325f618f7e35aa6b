"""Time networks side by side: `python bench.py --help`."""

from mobilenet_exp.cli import bench

if __name__ == "__main__":
    bench()
