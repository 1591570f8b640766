//! The checked-in corpus of every target, once, on the stable compiler.

use std::fs;
use std::path::Path;

use pfnguard_targets::ALL;

#[test]
fn every_input_of_the_corpus_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for target in ALL {
        let folder = corpus.join(target.name);
        let inputs = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut count = 0;
        for input in inputs {
            let path = input.expect("a folder's entry").path();
            (target.run)(&fs::read(&path).expect("an input"));
            count += 1;
        }
        assert!(count > 0, "{} has no corpus", target.name);
        println!("{}: {count} inputs", target.name);
    }
}
