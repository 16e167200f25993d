"""What the tests share: tiny models, graphs, bundles and servers."""
