//! QEMU's command line: the user's arguments and ours, and those that cannot go together.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use mycoram_fabric::units::ByteCount;

/// The id of the memory backend that we add.
pub const BACKEND_ID: &str = "mycoram-ram";

/// What QEMU's RAM is made on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// An anonymous file of QEMU's own.
    #[default]
    Memfd,
    /// A file, or a directory for one without a name, on a tmpfs.
    File(PathBuf),
}

/// A command line that is complete but for the QMP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuArguments {
    /// All arguments, ours first.
    pub arguments: Vec<OsString>,
    /// The user wants the guest to wait (-S).
    pub stay_paused: bool,
}

/// A user's argument that cannot be honoured, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// -m says something else than --memory.
    #[error("-m {given} contradicts --memory {memory}; leave -m out")]
    Size {
        /// The value of -m.
        given: String,
        /// The value of --memory.
        memory: ByteCount,
    },
    /// -m that we cannot read.
    #[error("the size in -m {given} cannot be read; leave -m out, --memory says it")]
    UnreadableSize {
        /// The value of -m.
        given: String,
    },
    /// The user brings a memory of his own.
    #[error(
        "{option} gives QEMU memory of its own; leave it out: `myco vm run` adds the memory backend"
    )]
    OwnMemory {
        /// The option.
        option: &'static str,
    },
    /// Several memory nodes of the guest.
    #[error(
        "-numa spreads the guest's RAM over several memory backends; a VM has one region: leave it out"
    )]
    Numa,
    /// All memory would be touched or pinned.
    #[error(
        "{option} makes all of the guest's RAM resident, whatever the local budget is; leave it out"
    )]
    Pins {
        /// The option.
        option: &'static str,
    },
    /// Another process would use the memory past the agent.
    #[error(
        "{option} lets another process map the guest's RAM, where no fault reaches the agent: it would read \
         zeros for pages that are away; use a device that QEMU serves itself"
    )]
    OtherProcess {
        /// The option.
        option: &'static str,
    },
    /// QEMU would leave us.
    #[error(
        "{option} cannot be used: `myco vm run` stays with QEMU until it ends; use your shell's or systemd's background instead"
    )]
    Leaves {
        /// The option.
        option: &'static str,
    },
    /// The size is none.
    #[error("--memory {memory} is not a whole number of MiB, as QEMU wants it")]
    NotMebibytes {
        /// The value of --memory.
        memory: ByteCount,
    },
}

/// Puts our arguments in front of the user's.
///
/// Several -machine options are one to QEMU, so the user's own -machine and -M stay as they are.
pub fn merge(
    user: &[OsString],
    memory: ByteCount,
    backing: &Backing,
) -> Result<QemuArguments, ArgumentError> {
    if memory.get() == 0 || !memory.get().is_multiple_of(1 << 20) {
        return Err(ArgumentError::NotMebibytes { memory });
    }
    let user_sized = check(user, memory)?;

    let mut object = OsString::from(match backing {
        Backing::Memfd => "memory-backend-memfd",
        Backing::File(_) => "memory-backend-file",
    });
    object.push(format!(",id={BACKEND_ID},share=on,size={}", memory.get()));
    if let Backing::File(path) = backing {
        object.push(",mem-path=");
        object.push(escape_commas(path.as_os_str()));
    }
    let mut arguments = vec![
        "-object".into(),
        object,
        "-machine".into(),
        format!("memory-backend={BACKEND_ID}").into(),
    ];
    if !user_sized {
        arguments.push("-m".into());
        arguments.push(format!("{}M", memory.get() >> 20).into());
    }
    let stay_paused = user.iter().any(|a| option_name(a) == Some("S"));
    if !stay_paused {
        arguments.push("-S".into());
    }
    arguments.extend_from_slice(user);
    Ok(QemuArguments {
        arguments,
        stay_paused,
    })
}

/// Whether a disk writes into the guest's RAM by itself (O_DIRECT). Such a write can still arrive in a page that has
/// been evicted meanwhile, so evicted pages wait longer then, and in more parking pipes.
#[must_use]
pub fn has_direct_io(arguments: &[OsString]) -> bool {
    const WORDS: [&str; 6] = [
        "cache=none",
        "cache=directsync",
        "cache.direct=on",
        "\"direct\":true",
        "aio=native",
        "\"aio\":\"native\"",
    ];
    arguments.iter().any(|argument| {
        let text: String = argument
            .to_string_lossy()
            .split_ascii_whitespace()
            .collect();
        WORDS.iter().any(|word| text.contains(word))
    })
}

/// Looks for what cannot be; answers whether the user gives the size himself.
fn check(user: &[OsString], memory: ByteCount) -> Result<bool, ArgumentError> {
    let mut sized = false;
    let mut rest = user.iter();
    while let Some(argument) = rest.next() {
        let Some(option) = option_name(argument) else {
            continue;
        };
        // Its value, if it takes one: QEMU has no form `-option=value`.
        let value = || {
            rest.clone()
                .next()
                .map(|v| v.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        match option {
            "m" => {
                check_size(&value(), memory)?;
                sized = true;
            }
            "mem-path" => {
                return Err(ArgumentError::OwnMemory {
                    option: "-mem-path",
                });
            }
            "object" if value().contains("memory-backend-") => {
                return Err(ArgumentError::OwnMemory {
                    option: "-object memory-backend-...",
                });
            }
            "machine" | "M" if value().contains("memory-backend=") => {
                return Err(ArgumentError::OwnMemory {
                    option: "-machine memory-backend=...",
                });
            }
            "numa" => return Err(ArgumentError::Numa),
            "mem-prealloc" => {
                return Err(ArgumentError::Pins {
                    option: "-mem-prealloc",
                });
            }
            "overcommit" | "realtime"
                if value()
                    .split(',')
                    .any(|part| is_on(part, &["mem-lock", "mlock"])) =>
            {
                return Err(ArgumentError::Pins {
                    option: "-overcommit mem-lock=on",
                });
            }
            "device" if value().starts_with("vfio-") || value().contains("\"vfio-") => {
                return Err(ArgumentError::Pins {
                    option: "-device vfio-...",
                });
            }
            "device" | "netdev" | "blockdev" | "chardev" if value().contains("vhost-user") => {
                return Err(ArgumentError::OtherProcess {
                    option: "vhost-user",
                });
            }
            "device" | "object"
                if value().contains("x-remote-object") || value().contains("x-pci-proxy-dev") =>
            {
                return Err(ArgumentError::OtherProcess {
                    option: "a remote device",
                });
            }
            "daemonize" => {
                return Err(ArgumentError::Leaves {
                    option: "-daemonize",
                });
            }
            "preconfig" => {
                return Err(ArgumentError::Leaves {
                    option: "-preconfig",
                });
            }
            _ => {}
        }
    }
    Ok(sized)
}

/// `name` of `-name` and of `--name`.
fn option_name(argument: &OsStr) -> Option<&str> {
    let text = argument.to_str()?.strip_prefix('-')?;
    Some(text.strip_prefix('-').unwrap_or(text))
}

fn is_on(part: &str, names: &[&str]) -> bool {
    let (name, value) = part.split_once('=').unwrap_or((part, "on"));
    names.contains(&name) && matches!(value, "on" | "yes" | "true" | "y" | "cpu-pinned")
}

/// `-m [size=]N[unit][,slots=..,maxmem=..]`: a number without a unit counts MiB.
fn check_size(given: &str, memory: ByteCount) -> Result<(), ArgumentError> {
    let unreadable = || ArgumentError::UnreadableSize {
        given: given.to_owned(),
    };
    let size = given
        .split(',')
        .enumerate()
        .find_map(|(index, part)| match part.split_once('=') {
            Some(("size", size)) => Some(size),
            None if index == 0 => Some(part),
            _ => None,
        })
        .ok_or_else(unreadable)?;
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &size[digits.len()..] {
        "" | "M" | "m" => 20,
        "K" | "k" => 10,
        "G" | "g" => 30,
        "T" | "t" => 40,
        "B" | "b" => 0,
        _ => return Err(unreadable()),
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(unreadable)?;
    if bytes == memory.get() {
        Ok(())
    } else {
        Err(ArgumentError::Size {
            given: given.to_owned(),
            memory,
        })
    }
}

/// QEMU reads two commas in a value as one.
fn escape_commas(path: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut escaped = Vec::with_capacity(path.len());
    for &byte in path.as_bytes() {
        escaped.push(byte);
        if byte == b',' {
            escaped.push(byte);
        }
    }
    OsString::from_vec(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: ByteCount = ByteCount::new(512 << 20);

    fn words(text: &str) -> Vec<OsString> {
        text.split_ascii_whitespace().map(OsString::from).collect()
    }

    fn merged(text: &str) -> Result<QemuArguments, ArgumentError> {
        merge(&words(text), MEMORY, &Backing::Memfd)
    }

    #[test]
    fn ours_come_first_and_the_users_stay() {
        let done = merged("-M q35 -nographic -kernel a").unwrap();
        assert!(!done.stay_paused);
        assert_eq!(
            done.arguments,
            words(
                "-object memory-backend-memfd,id=mycoram-ram,share=on,size=536870912 -machine memory-backend=mycoram-ram \
                 -m 512M -S -M q35 -nographic -kernel a"
            )
        );
    }

    #[test]
    fn a_size_of_the_users_must_be_the_same() {
        for same in [
            "-m 512",
            "-m 512M",
            "--m size=512M,slots=2,maxmem=4G",
            "-m 536870912b",
            "-m 524288k",
        ] {
            let done = merged(same).unwrap();
            assert_eq!(
                done.arguments
                    .iter()
                    .filter(|a| option_name(a) == Some("m"))
                    .count(),
                1,
                "{same}"
            );
        }
        for other in ["-m 1G", "-m 511", "-m size=1G,slots=2"] {
            assert!(
                matches!(merged(other), Err(ArgumentError::Size { .. })),
                "{other}"
            );
        }
        for strange in ["-m", "-m slots=2", "-m 5x", "-m 99999999999999999T"] {
            assert!(
                matches!(merged(strange), Err(ArgumentError::UnreadableSize { .. })),
                "{strange}"
            );
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        use ArgumentError::{Leaves, Numa, OtherProcess, OwnMemory, Pins};
        let refused = |text| merged(text).unwrap_err();
        assert!(matches!(
            refused("-mem-path /x"),
            OwnMemory {
                option: "-mem-path"
            }
        ));
        assert!(matches!(
            refused("-object memory-backend-ram,id=a,size=1G"),
            OwnMemory { .. }
        ));
        assert!(matches!(
            refused("-object {\"qom-type\":\"memory-backend-memfd\"}"),
            OwnMemory { .. }
        ));
        assert!(matches!(
            refused("-machine q35,memory-backend=a"),
            OwnMemory { .. }
        ));
        assert!(matches!(refused("--numa node"), Numa));
        assert!(matches!(refused("-mem-prealloc"), Pins { .. }));
        assert!(matches!(refused("-overcommit mem-lock=on"), Pins { .. }));
        assert!(matches!(refused("-device vfio-pci,host=1"), Pins { .. }));
        assert!(matches!(
            refused("-netdev vhost-user,id=a,chardev=b"),
            OtherProcess { .. }
        ));
        assert!(matches!(
            refused("-device vhost-user-fs-pci,chardev=b"),
            OtherProcess { .. }
        ));
        assert!(matches!(refused("-daemonize"), Leaves { .. }));
        merged("-overcommit mem-lock=off -object rng-random,id=r -device virtio-net -netdev tap,vhost=on,id=n").unwrap();
        for error in [
            refused("-numa node"),
            refused("-mem-prealloc"),
            refused("-m 1G"),
        ] {
            assert!(error.to_string().contains("leave"), "{error}");
        }
    }

    #[test]
    fn disks_that_write_past_the_page_cache_are_seen() {
        assert!(has_direct_io(&words("-drive file=a,cache=none")));
        assert!(has_direct_io(&words(
            "-drive file=a,format=raw,aio=native,cache.direct=on"
        )));
        let json = r#"{"driver":"file","cache": {"direct": true, "no-flush": false}}"#;
        assert!(has_direct_io(&[json.into()]));
        assert!(!has_direct_io(&words(
            "-drive file=a,cache=writeback -kernel b"
        )));
    }

    #[test]
    fn a_guest_that_is_to_wait_waits() {
        let done = merged("-S -nographic").unwrap();
        assert!(done.stay_paused);
        assert_eq!(done.arguments.iter().filter(|a| *a == "-S").count(), 1);
    }

    #[test]
    fn commas_in_a_path_are_doubled() {
        let done = merge(&[], MEMORY, &Backing::File("/dev/shm/a,b".into())).unwrap();
        let object = done.arguments[1].to_str().unwrap();
        assert!(object.ends_with("mem-path=/dev/shm/a,,b"), "{object}");
        assert!(object.starts_with("memory-backend-file,"));
        assert!(matches!(
            merge(&[], ByteCount::new(4096), &Backing::Memfd),
            Err(ArgumentError::NotMebibytes { .. })
        ));
    }
}
