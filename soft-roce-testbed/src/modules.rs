//! Which kernel modules the guest loads before its root is there, and in what order: pure.

use std::collections::{BTreeMap, BTreeSet};

/// Modules the guest cannot do without (unless they are built in).
pub(crate) const NEEDED: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
    "rdma_rxe",
    "ib_uverbs",
    "rdma_ucm",
    "veth",
    "bridge",
    "sch_netem",
    "dummy",
];

/// Modules that only some kernels have. Where it exists, `rdma_rxe` cannot add a device without
/// `crc32_generic`, though it does not name it as a dependency.
pub(crate) const IF_PRESENT: &[&str] = &["crc32_generic", "crc32_pclmul", "virtio_net"];

/// A module that neither `modules.dep` nor `modules.builtin` knows.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the kernel has no module {module}")]
pub struct MissingModule {
    /// Its name.
    pub module: Box<str>,
}

/// The files to load, dependencies first, as paths relative to the modules directory.
pub(crate) fn load_order(
    modules_dep: &str,
    modules_builtin: &str,
) -> Result<Vec<String>, MissingModule> {
    let table = Dependencies::parse(modules_dep, modules_builtin);
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in IF_PRESENT.iter().chain(NEEDED) {
        match table.files.get(*name) {
            Some(path) => table.visit(path, &mut seen, &mut order),
            None if table.builtin.contains(*name) || IF_PRESENT.contains(name) => {}
            None => {
                return Err(MissingModule {
                    module: (*name).into(),
                });
            }
        }
    }
    Ok(order)
}

struct Dependencies<'a> {
    files: BTreeMap<String, &'a str>,
    depends: BTreeMap<&'a str, Vec<&'a str>>,
    builtin: BTreeSet<String>,
}

impl<'a> Dependencies<'a> {
    fn parse(modules_dep: &'a str, modules_builtin: &str) -> Self {
        let mut files = BTreeMap::new();
        let mut depends = BTreeMap::new();
        for (path, needs) in modules_dep.lines().filter_map(|line| line.split_once(':')) {
            files.insert(module_name(path), path);
            depends.insert(path, needs.split_whitespace().collect());
        }
        Self {
            files,
            depends,
            builtin: modules_builtin.lines().map(module_name).collect(),
        }
    }

    /// Depth first; `modules.dep` holds no cycle, and `seen` would end one.
    fn visit(&self, path: &'a str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<String>) {
        if !seen.insert(path) {
            return;
        }
        for needed in self.depends.get(path).into_iter().flatten() {
            self.visit(needed, seen, order);
        }
        order.push(path.to_owned());
    }
}

/// `9pnet_virtio` of `kernel/net/9p/9pnet_virtio.ko.xz`; the kernel treats `-` and `_` alike.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dep_of(names: &[&str]) -> String {
        names
            .iter()
            .map(|name| format!("kernel/x/{name}.ko.xz:\n"))
            .collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let mut dep = dep_of(&[
            "virtio_pci",
            "9pnet",
            "overlay",
            "ib_uverbs",
            "rdma_ucm",
            "veth",
            "bridge",
            "sch_netem",
            "dummy",
            "ib_core",
            "udp_tunnel",
        ]);
        dep.push_str("kernel/x/9p.ko.xz: kernel/x/9pnet.ko.xz\nkernel/x/9pnet_virtio.ko.xz: kernel/x/9pnet.ko.xz\n");
        dep.push_str("kernel/x/rdma_rxe.ko.xz: kernel/x/udp_tunnel.ko.xz kernel/x/ib_core.ko.xz\nkernel/crypto/crc32-generic.ko.xz:\n");
        let order = load_order(&dep, "kernel/drivers/char/virtio_console.ko\n").unwrap();
        let at = |name: &str| {
            order
                .iter()
                .position(|path| path.ends_with(&format!("/{name}.ko.xz")))
                .unwrap()
        };
        assert!(at("9pnet") < at("9p") && at("9p") < at("9pnet_virtio"));
        assert!(at("ib_core") < at("rdma_rxe") && at("crc32-generic") < at("rdma_rxe"));
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), order.len());
        assert!(!order.iter().any(|path| path.contains("virtio_console")));
    }

    #[test]
    fn names_the_missing_module() {
        assert_eq!(
            load_order(&dep_of(&["virtio_pci"]), "").unwrap_err(),
            MissingModule {
                module: "virtio_console".into()
            }
        );
    }
}
