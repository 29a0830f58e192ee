"""GPT-2 124M and 1.5B on up to 1,024 ranks, by the cost model: tables and a plot.

What is assumed, for every rank: 4e14 floating-point operations per second, about 40 % of what
an H100 is specified for in bfloat16; 6 of them for each parameter and token; 16,384 tokens; float32
gradients and parameters, 4 bytes; a message costs 1 µs of work. The networks' latencies are
assumed, their bandwidths nominal. Only the form of the model is measured here.
"""

from dataclasses import replace

import numpy as np

from benchmarks.cost_model import Job, Network, efficiency, fastest, last_efficient, step_time
from npgpt import GPTConfig
from npgpt.models.parameters import Parameters, count
from npgpt.parallel.buckets import buckets

RATE = 4e14                   # floating-point operations per second of a rank
TOKENS = 16_384               # of a rank in a step
OVERHEAD = 1e-6               # seconds of a message
NETWORKS = [Network("10 GbE", 30e-6, OVERHEAD, 1.25e9),
            Network("100 GbE", 5e-6, OVERHEAD, 12.5e9),
            # NVLink 4, of an H100: 18 links of 25 GB/s in each direction.
            Network("NVLink", 2e-6, OVERHEAD, 450e9)]
# name -> options of GPTConfig, and the tokens of a batch, GPT-3's for this size (Brown et al. 2020,
# arXiv:2005.14165, table 2.1).
MODELS = {"124M": ({}, 2**19), "1.5B": ({"n_layer": 48, "n_head": 25, "n_embd": 1600}, 2**20)}
RANKS = [2**power for power in range(11)]


def job(name, tokens=TOKENS):
    """-> the Job of a model whose ranks compute this number of tokens."""
    architecture = GPTConfig(**MODELS[name][0]).architecture()
    n = count(architecture)
    params = Parameters(architecture, np.broadcast_to(np.float32(0), n))       # no memory
    return Job(4 * n, len(buckets(params)), 6 * n * tokens / RATE)


def print_tables():
    """Where data parallelism stops paying."""
    print("\n| model | network | a step of 1 rank | of 8 | of 64 | of 1,024 | efficiency of 8 | "
          "of 64 | of 1,024 | ranks with at least 50 % | with overlap | tokens for 50 % of 64 |\n|"
          + " --- |" * 12)
    for name in MODELS:
        this = job(name)
        for network in NETWORKS:
            times = [f"{step_time(network, n, this):.3g} s" for n in (1, 8, 64, 1024)]
            shares = [f"{efficiency(network, n, this):.0%}" for n in (8, 64, 1024)]
            limits = [f"{last_efficient(network, replace(this, overlap=o)):,}"
                      for o in (False, True)]
            # As many as compute for as long as 64 ranks communicate.
            limits.append(f"{TOKENS * (1 / efficiency(network, 64, this) - 1):,.0f}")
            print(f"| {name} | {network.name} | " + " | ".join(times + shares + limits) + " |")
    print("\n| model | tokens of the batch | network | 1 rank | fastest | ranks | times as fast |"
          "\n|" + " --- |" * 7)
    for name, (_, tokens) in MODELS.items():
        this = job(name, tokens)
        for network in NETWORKS:
            ranks, seconds = fastest(network, this)
            print(f"| {name} | {tokens:,} | {network.name} | {this.compute:.3g} s | {seconds:.3g} s"
                  f" | {ranks:,} | {this.compute / seconds:.1f} |")


def draw(picture):
    """A row for each model: the time of a step, and the efficiency."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, PercentFormatter

    figure, axes = plt.subplots(len(MODELS), 2, figsize=(10, 6.6), constrained_layout=True)
    for (left, right), name in zip(axes, MODELS):
        this = job(name)
        for number, network in enumerate(NETWORKS):
            for overlap, style in ((False, "-"), (True, "--")):
                jobs = [replace(this, overlap=overlap)] * len(RANKS)
                label = f"{network.name}{', overlap' if overlap else ''}"
                for axis, value in ((left, step_time), (right, efficiency)):
                    axis.plot(RANKS, [value(network, n, j) for n, j in zip(RANKS, jobs)], style,
                              color=f"C{number}", label=label)
        left.axhline(this.compute, color="gray", linewidth=0.8, linestyle=":", label="computing")
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.set_ylabel("seconds")
        left.set_title(f"GPT-2 {name}: a step")
        right.set_ylim(0, 1.03)
        right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.set_title(f"GPT-2 {name}: efficiency")
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xticks(RANKS[::2], [f"{n:,}" for n in RANKS[::2]])
            axis.minorticks_off()
            axis.set_xlabel(f"ranks, with {TOKENS:,} tokens each")
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, ncols=4,
                  loc="outside lower center")
    figure.savefig(picture, dpi=110)
