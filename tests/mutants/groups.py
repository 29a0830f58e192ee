"""What is mutated, and the tests that must notice: a group for each subject.

GPT's mathematics is tried whole in every run. Of the other groups a run tries a share, which the
commit chooses, so that every mutant has its turn; `--full` tries all.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Group:
    """Modules and their tests."""

    name: str
    files: tuple[str, ...]       # patterns of paths
    tests: tuple[str, ...]
    share: float = 1.0           # of the mutants that a run without --full tries
    left_out: str = ""           # tests that add nothing here and take long, as for pytest -k
    constants: bool = False      # whether a constant that is wrong by a millionth must be noticed

    @property
    def paths(self):
        """The paths of the modules, relative to the root."""
        return [str(path.relative_to(ROOT)) for pattern in self.files
                for path in sorted(ROOT.glob(pattern)) if path.name != "__init__.py"]

    @property
    def modules(self):
        """The names of the modules."""
        return [path.removesuffix(".py").replace("/", ".") for path in self.paths]


# Mutants do not reach other programs that a test starts; and tests of a hundred cases each.
LEFT_OUT = ("test_ranks.py or test_ranks_command or test_recipes or test_processes.py or "
            "simultaneous or all_processes or the_imports or bar_moves or importing_npgpt or "
            "may_not_grow or below_the_limit or address_space or other_kinds or flipped_bits or "
            "terminal_that_is_closed or output_that_cannot or leaves_nothing_behind or "
            "colours_in_a_terminal or changed_byte or test_interactive or only_update_change")

GROUPS = [
    Group(
        "mathematics",
        ("npgpt/layers/[!lrst]*.py", "npgpt/layers/layernorm.py", "npgpt/layers/linear.py",
         "npgpt/models/blocks.py", "npgpt/models/gpt.py", "npgpt/optim/*.py",
         "npgpt/parallel/norm.py"),
        ("tests/test_gradients.py", "tests/layers", "tests/models", "tests/optim"),
        # What is composed of blocks adds nothing to the checks of the blocks. With mutmut,
        # functions keep their arguments alive.
        left_out="transformer or coder_block or every_element or is_alive",
        constants=True,
    ),
    # Of layers/rows.py half is for a GPU, and how it divides a sum changes its speed alone.
    Group("llama", ("npgpt/layers/rmsnorm.py", "npgpt/layers/rope.py", "npgpt/layers/swiglu.py",
                    "npgpt/models/llama*.py"),
          ("tests/test_gradients.py", "tests/layers", "tests/models"), share=0.3,
          left_out="transformer or coder_block or every_element or is_alive", constants=True),
    Group("memory", ("npgpt/layers/tiled_attention.py", "npgpt/layers/linear_cross_entropy.py",
                     "npgpt/models/recompute.py"),
          ("tests/test_gradients.py", "tests/layers", "tests/models"), share=0.3,
          left_out="transformer or coder_block or every_element or is_alive", constants=True),
    Group("adapters", ("npgpt/layers/lora.py", "npgpt/models/projection.py",
                       "npgpt/models/trained.py"),
          ("tests/test_gradients.py", "tests/layers", "tests/models"), share=0.3,
          left_out="transformer or coder_block or every_element or is_alive"),
    Group("buckets", ("npgpt/parallel/buckets.py",), ("tests/parallel/test_buckets.py",)),
    Group("gradcheck", ("npgpt/gradcheck/*.py",), ("tests/gradcheck",), share=0.3),
    Group("text", ("npgpt/text/[!c]*.py", "npgpt/text/c[ah]*.py"),           # but command.py
          ("tests/text",), share=0.1, left_out=LEFT_OUT),
    Group("files", ("npgpt/checkpoints/*.py", "npgpt/durable.py", "npgpt/gguf_*.py",
                    "npgpt/reading.py"),
          ("tests/checkpoints", "tests/text", "tests/test_durable.py", "tests/test_gguf_file.py",
           *(f"tests/reliability/test_{name}.py" for name in (
               "best_and_overwrite", "lock", "reading"))),
          share=0.1, left_out=LEFT_OUT),
    Group("generation", ("npgpt/models/generate.py", "npgpt/models/sampling.py", "sample.py"),
          ("tests/models/test_generate.py", "tests/commands"), share=0.1, left_out=LEFT_OUT),
    Group("training",
          ("train.py",
           *(f"npgpt/training/{name}.py" for name in (
               "config", "request", "beginning", "setup", "run", "step", "evaluation",
               "perplexity", "merge_command"))),
          ("tests/training", "tests/commands", "tests/cli", "tests/text",
           *(f"tests/reliability/test_{name}.py" for name in (
               "evaluation", "reading", "signals", "unusable", "writing"))),
          share=0.05, left_out=LEFT_OUT),
    Group("explain", ("npgpt/explain/measure.py",), ("tests/explain/test_measure.py",)),
]
MODULES = [module for group in GROUPS for module in group.modules]
