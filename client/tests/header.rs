//! The installed header is what the library's source says, and both kinds of compilers take it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(crate_dir().join("cbindgen.toml")).unwrap();
    let sources = [
        "ffi/functions.rs",
        "ffi/table.rs",
        "status.rs",
        "stats.rs",
        "advice.rs",
    ];
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in sources {
        builder = builder.with_src(crate_dir().join("src").join(source));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_what_the_source_says() {
    let header = crate_dir().join("include/mycoram.h");
    let generated = generated();
    if std::env::var_os("MYCORAM_UPDATE_HEADER").is_some() {
        std::fs::write(&header, &generated).unwrap();
    }
    let installed = std::fs::read_to_string(&header).unwrap();
    assert!(
        installed == generated,
        "client/include/mycoram.h is not what the source says: run MYCORAM_UPDATE_HEADER=1 cargo test -p mycoram --test header"
    );
}

fn compile(compiler: &str, args: &[&str], name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let source: PathBuf = dir.path().join(name);
    std::fs::write(
        &source,
        "#include <mycoram.h>\nint main(void) { return mycoram_abi_version() != MYCORAM_ABI_VERSION; }\n",
    )
    .unwrap();
    let output = Command::new(compiler)
        .args(args)
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", "-I"])
        .arg(crate_dir().join("include"))
        .arg(&source)
        .arg("-o")
        .arg(dir.path().join("out.o"))
        .output()
        .unwrap_or_else(|error| {
            panic!("{compiler} is needed (apt-get install build-essential): {error}")
        });
    assert!(
        output.status.success(),
        "{compiler} does not take the header:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn c_and_cpp_compilers_take_the_header() {
    compile("gcc", &["-std=c11"], "uses.c");
    compile("g++", &["-std=c++17", "-x", "c++"], "uses.cc");
}
