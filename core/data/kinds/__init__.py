"""Kinds of corpora that come with the package: each module registers those that it reads. See core.data.corpus."""
