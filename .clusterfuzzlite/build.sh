#!/usr/bin/env bash
# Builds every fuzz target and packs its corpus, as ClusterFuzzLite and OSS-Fuzz expect: binaries
# and NAME_seed_corpus.zip in $OUT. $FUZZ_TARGET_DIR may name a build directory to reuse.
set -euo pipefail

export RUSTC_WRAPPER=$PWD/fuzz/rustc-instrumented
built=${FUZZ_TARGET_DIR:-fuzz/target}
cargo +nightly fuzz build --fuzz-dir fuzz --target-dir "$built"

for source in fuzz/fuzz_targets/*.rs; do
	name=$(basename "$source" .rs)
	cp "$built/x86_64-unknown-linux-gnu/release/$name" "$OUT/"
	python3 -m zipfile -c "$OUT/${name}_seed_corpus.zip" "fuzz/corpus/$name"/*
done
