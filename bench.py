"""Time the old V1 table's networks and ours side by side.

python bench.py
python bench.py models=[v2,v3_small] batch_sizes=[1] rounds=21
"""

from mobilenet_exp import cli


@cli.entry("bench")
def main(config, **_):
    from mobilenet_exp.deploy import job as run

    return run.bench(config)


if __name__ == "__main__":
    main()
