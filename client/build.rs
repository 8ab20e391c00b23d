//! Link arguments of libmycoram.so.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The name under which programs that were linked to it look for it; its number is the ABI's.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmycoram.so.1");
    // Its threads run in it until the process ends, so dlclose must not take it away.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
