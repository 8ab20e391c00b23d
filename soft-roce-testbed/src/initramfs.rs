//! The guest's first root: static busybox, the modules, and the script that finds the real root.
//!
//! Written as an uncompressed `newc` archive by hand: the format is thirteen hexadecimal fields and a
//! name, and so neither cpio nor a compressor is needed. Pure but for the `Vec` it fills.

/// File mode of a directory, and of an executable file, as `newc` wants them.
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;

/// Where the guest's process 1 finds the per-run share.
pub(crate) const RUN_DIR: &str = "/run/mycoram-testbed";

/// Mount tags of the 9p shares.
pub(crate) const ROOT_TAG: &str = "root";
pub(crate) const RUN_TAG: &str = "run";
pub(crate) const OUT_TAG: &str = "out";

/// What stage one of the guest's boot must know.
pub(crate) struct FirstStage<'a> {
    /// Directory inside the guest, the same path as on the host, where files come back from.
    pub(crate) out_dir: &'a str,
    /// Where the unpacked modules are (same path as on the host), for `modprobe` in the guest.
    pub(crate) modules_dir: &'a str,
    /// Program and arguments to become process 1.
    pub(crate) process_one: &'a [String],
}

impl FirstStage<'_> {
    /// The `/init` script. Each step says what it was if it fails, then the kernel panics at once.
    pub(crate) fn script(&self) -> String {
        let process_one = self
            .process_one
            .iter()
            .map(|word| quoted(word))
            .collect::<Vec<_>>()
            .join(" ");
        let (out_dir, modules_dir) = (quoted(self.out_dir), quoted(self.modules_dir));
        format!(
            r#"#!/bin/busybox sh
fail() {{ echo "testbed: boot failed: $1" >/dev/console; exit 1; }}
export PATH=/bin
mount -t proc proc /proc || fail "mount /proc"
mount -t sysfs sys /sys || fail "mount /sys"
mount -t devtmpfs dev /dev || fail "mount /dev"
while read -r module; do insmod "/modules/$module" || fail "load $module"; done </modules.order
P="trans=virtio,version=9p2000.L,msize=1048576"
mount -t 9p -o "ro,$P,cache=loose" {ROOT_TAG} /lower || fail "mount the host's root"
mount -t tmpfs -o mode=0755 tmpfs /upper || fail "mount tmpfs"
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /new || fail "mount overlay"
mount -t proc proc /new/proc || fail "mount /proc in the new root"
mount -t sysfs sys /new/sys || fail "mount /sys in the new root"
mount -t devtmpfs dev /new/dev || fail "mount /dev in the new root"
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /new/dev/shm || fail "mount /dev/shm"
mount -t devpts devpts /new/dev/pts || fail "mount /dev/pts"
mount -t tmpfs -o mode=0755 tmpfs /new/run || fail "mount /run"
mkdir -p /new{RUN_DIR} /new/usr/lib/modules
mount -t 9p -o "$P,cache=none" {RUN_TAG} /new{RUN_DIR} || fail "mount the run share"
mount -t 9p -o "$P,cache=none" {OUT_TAG} /new/{out_dir} || fail "mount the out share"
[ -e /new/lib ] || ln -s usr/lib /new/lib
mkdir -p /new/lib/modules
ln -s {modules_dir} "/new/lib/modules/$(uname -r)" 2>/dev/null
umount /dev /sys /proc
exec switch_root /new {process_one}
fail "switch root"
"#
        )
    }
}

/// Single-quotes a word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// An initramfs that holds nothing but `program`, a static executable, as `/init`.
#[must_use]
pub fn archive_of_init(program: &[u8]) -> Vec<u8> {
    Archive::of_init(program)
}

/// A `newc` archive in the making.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// The archive of the guest's first root. `modules` are (file name, content) in load order.
    pub(crate) fn first_root(
        busybox: &[u8],
        modules: &[(String, Vec<u8>)],
        stage: &FirstStage<'_>,
    ) -> Vec<u8> {
        let mut archive = Self {
            bytes: Vec::new(),
            entries: 0,
        };
        for directory in [
            "bin", "dev", "proc", "sys", "modules", "lower", "upper", "new",
        ] {
            archive.entry(directory, DIRECTORY, b"");
        }
        archive.entry("bin/busybox", EXECUTABLE, busybox);
        for applet in [
            "sh",
            "mount",
            "umount",
            "insmod",
            "mkdir",
            "ln",
            "uname",
            "switch_root",
        ] {
            archive.entry(&format!("bin/{applet}"), SYMLINK, b"busybox");
        }
        let mut order = String::new();
        for (name, content) in modules {
            archive.entry(&format!("modules/{name}"), EXECUTABLE, content);
            order.push_str(name);
            order.push('\n');
        }
        archive.entry("modules.order", EXECUTABLE, order.as_bytes());
        archive.entry("init", EXECUTABLE, stage.script().as_bytes());
        archive.entry("TRAILER!!!", 0, b"");
        archive.bytes
    }

    /// An archive whose only file is `/init`: for guests that run one static program.
    fn of_init(program: &[u8]) -> Vec<u8> {
        let mut archive = Self {
            bytes: Vec::new(),
            entries: 0,
        };
        archive.entry("init", EXECUTABLE, program);
        archive.entry("TRAILER!!!", 0, b"");
        archive.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let header = format!(
            "070701{:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}",
            self.entries,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage() -> FirstStage<'static> {
        FirstStage {
            out_dir: "/work tree/out",
            modules_dir: "/m",
            process_one: &[],
        }
    }

    #[test]
    fn entries_are_aligned_and_sized() {
        let archive = Archive::first_root(b"busy", &[("a.ko".to_owned(), vec![7; 5])], &stage());
        assert_eq!(archive.len() % 4, 0);
        let mut at = 0;
        let mut names = Vec::new();
        while at < archive.len() {
            let field = |index: usize| {
                let from = at + 6 + index * 8;
                usize::from_str_radix(std::str::from_utf8(&archive[from..from + 8]).unwrap(), 16)
                    .unwrap()
            };
            assert_eq!(&archive[at..at + 6], b"070701");
            let (size, name_size) = (field(6), field(11));
            names.push(
                String::from_utf8(archive[at + 110..at + 110 + name_size - 1].to_vec()).unwrap(),
            );
            at = (at + 110 + name_size).next_multiple_of(4) + size;
            at = at.next_multiple_of(4);
        }
        assert_eq!(names.first().unwrap(), "bin");
        assert_eq!(names.last().unwrap(), "TRAILER!!!");
        assert!(names.contains(&"modules/a.ko".to_owned()));
    }

    #[test]
    fn paths_are_quoted_for_the_shell() {
        let words = ["/it's".to_owned()];
        let script = FirstStage {
            process_one: &words,
            ..stage()
        }
        .script();
        assert!(script.contains(r"switch_root /new '/it'\''s'"), "{script}");
        assert!(script.contains("/new/'/work tree/out'"));
    }
}
