//! Names that say whose they are, so that what a run has left that was killed with -9 is found by the next one.
//! Process numbers are used again: what is left may then stay until a later run.

use std::fs;
use std::io;
use std::path::Path;

use tempfile::TempDir;

const DIRECTORY: &str = "mycoram-faults";

/// A name of this process: the prefix, its number.
pub(crate) fn name(prefix: &str) -> String {
    format!("{prefix}-{}", std::process::id())
}

/// The names in `place` that begin with `prefix` and belong to processes that are gone.
pub(crate) fn left_in(place: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_left = |name: &String| {
        let rest = name.strip_prefix(prefix)?.strip_prefix('-')?;
        let pid: u32 = rest.split('-').next()?.parse().ok()?;
        Some(!Path::new("/proc").join(pid.to_string()).exists())
    };
    names
        .filter(|name| is_left(name).unwrap_or(false))
        .collect()
}

/// A directory of this process in `place`, which is rid of those that others have left.
pub(crate) fn directory(place: &Path) -> io::Result<TempDir> {
    for left in left_in(place, DIRECTORY) {
        match fs::remove_dir_all(place.join(left)) {
            // Another run was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    let prefix = format!("{}-", name(DIRECTORY));
    tempfile::Builder::new().prefix(&prefix).tempdir_in(place)
}

#[test]
fn what_a_process_has_left_that_is_gone_is_removed() {
    let place = tempfile::tempdir().expect("a directory");
    let mut child = std::process::Command::new("true").spawn().expect("true");
    child.wait().expect("it ends");
    let gone = place.path().join(format!("{DIRECTORY}-{}-abc", child.id()));
    fs::create_dir(&gone).expect("made");
    fs::write(gone.join("store"), "x").expect("written");
    let foreign = place.path().join(DIRECTORY);
    fs::create_dir(&foreign).expect("made");
    let ours = directory(place.path()).expect("made");
    let others = directory(place.path()).expect("made");
    assert!(!gone.exists());
    assert!(foreign.exists() && ours.path().exists() && others.path().exists());
}
