//! The descriptors that a program passes: are they what they should be? Nothing that a program can pass
//! may harm anybody but itself, so each is looked at before it is used.

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::message::Mapping;
use crate::kernel::{self, MemoryFile, MemoryFileKind, PidFd, TargetAddr, TargetRange, Userfault};
use crate::{HeldDescriptors, MAX_PARKING_PIPES, ParkingPipe, SLOTS_PER_PIPE, Target};

/// What is wrong with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum DescriptorFault {
    /// Not as many as announced.
    #[error("{expected} descriptors were announced, {found} came")]
    Count {
        /// As announced.
        expected: usize,
        /// As came.
        found: usize,
    },
    /// Fewer pipes than are needed, or more than are used.
    #[error("{pipes} parking pipes were given; 2 to {MAX_PARKING_PIPES} are needed")]
    Pipes {
        /// As came.
        pipes: usize,
    },
    /// The first is no userfaultfd.
    #[error("the userfaultfd is none")]
    NotUserfault,
    /// It was set up by somebody else, or, in a take-over, by nobody.
    #[error("the userfaultfd is not in the state that is needed: new to attach, in use to resume")]
    UserfaultState,
    /// The second is no memory.
    #[error("the memory is neither a memfd nor a file on tmpfs with pages of 4 KiB")]
    NotMemory,
    /// Somebody could make it smaller.
    #[error("the memory's size is not sealed (F_SEAL_SHRINK, F_SEAL_GROW)")]
    NotSealed,
    /// The mapping is not whole pages of the memory.
    #[error("the mapping does not consist of whole pages inside of the memory")]
    Range,
    /// One of the others is no pipe that can be used.
    #[error("a parking pipe is none, or too small, or holds something")]
    NotPipe,
}

/// Whether the region is new or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    New,
    GoesOn,
}

/// Makes a target of what a program has passed.
pub(super) fn target(
    process: PidFd,
    mapping: &Mapping,
    descriptors: Vec<OwnedFd>,
    life: Life,
) -> Result<Target, DescriptorFault> {
    let pipes = mapping.held_pipes.len();
    if !(2..=MAX_PARKING_PIPES).contains(&pipes) {
        return Err(DescriptorFault::Pipes { pipes });
    }
    let (expected, found) = (2 + 2 * pipes, descriptors.len());
    if found != expected {
        return Err(DescriptorFault::Count { expected, found });
    }
    let mut rest = descriptors.into_iter();
    let mut next = || {
        rest.next()
            .ok_or(DescriptorFault::Count { expected, found })
    };
    let uffd = userfault(next()?, life)?;
    let memory = memory(next()?, mapping)?;
    let pipes = (0..pipes)
        .map(|_| parking_pipe(next()?, next()?, life))
        .collect::<Result<_, _>>()?;
    Ok(Target {
        pid: process.pid(),
        pidfd: process.into_fd(),
        uffd,
        memory,
        file_offset: mapping.file_offset,
        base: mapping.base,
        bytes: mapping.bytes,
        pipes,
        held: HeldDescriptors {
            uffd: mapping.held_uffd,
            memory: mapping.held_memory,
            pipes: mapping.held_pipes.clone(),
        },
    })
}

fn userfault(fd: OwnedFd, life: Life) -> Result<OwnedFd, DescriptorFault> {
    let userfault = Userfault::from_received(fd).map_err(|_| DescriptorFault::NotUserfault)?;
    if userfault.is_set_up() != (life == Life::GoesOn) {
        return Err(DescriptorFault::UserfaultState);
    }
    userfault
        .try_clone_fd()
        .map_err(|_| DescriptorFault::NotUserfault)
}

fn memory(fd: OwnedFd, mapping: &Mapping) -> Result<OwnedFd, DescriptorFault> {
    let file = MemoryFile::from_fd(fd).map_err(|_| DescriptorFault::NotMemory)?;
    if file.kind() != MemoryFileKind::Shmem {
        return Err(DescriptorFault::NotMemory);
    }
    // A file on tmpfs cannot be sealed; a memfd of which the size can change would let its program
    // pull the memory from under an eviction.
    if !file.size_is_sealed() {
        return Err(DescriptorFault::NotSealed);
    }
    TargetRange::new(TargetAddr::new(mapping.base), mapping.bytes.get())
        .map_err(|_| DescriptorFault::Range)?;
    let end = mapping.file_offset.checked_add(mapping.bytes.get());
    let aligned = mapping.file_offset.is_multiple_of(4096);
    if !aligned || end.is_none_or(|end| end > file.pages().bytes().get()) {
        return Err(DescriptorFault::Range);
    }
    file.as_fd()
        .try_clone_to_owned()
        .map_err(|_| DescriptorFault::NotMemory)
}

fn parking_pipe(out: OwnedFd, into: OwnedFd, life: Life) -> Result<ParkingPipe, DescriptorFault> {
    let pipe = kernel::ParkingPipe::from_ends(out, into).map_err(|_| DescriptorFault::NotPipe)?;
    let empty = pipe.queued().is_ok_and(|queued| queued.get() == 0);
    if pipe.slots().get() < u32::from(SLOTS_PER_PIPE) || (life == Life::New && !empty) {
        return Err(DescriptorFault::NotPipe);
    }
    let (read, write) = pipe.into_ends();
    Ok(ParkingPipe { read, write })
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use mycoram_fabric::units::{ByteCount, PageCount};

    use super::*;
    use crate::kernel::FeatureSet;

    /// What an honest program passes, as descriptors: userfaultfd, memory, two pipes.
    fn honest() -> (Mapping, Vec<OwnedFd>) {
        let bytes = ByteCount::mib(1);
        let userfault = Userfault::new_in_this_process().expect(
            "these tests need a userfaultfd: run them as root or set vm.unprivileged_userfaultfd=1",
        );
        let memory = MemoryFile::create(c"honest", bytes).expect("a memfd");
        let mut fds = vec![
            userfault.try_clone_fd().expect("dup"),
            memory.as_fd().try_clone_to_owned().expect("dup"),
        ];
        for _ in 0..2 {
            let slots = PageCount::new(u32::from(SLOTS_PER_PIPE));
            let (out, into) = kernel::ParkingPipe::new(slots).expect("a pipe").into_ends();
            fds.extend([out, into]);
        }
        let mapping = Mapping {
            base: 1 << 30,
            bytes,
            file_offset: 0,
            held_uffd: 3,
            held_memory: 4,
            held_pipes: vec![(5, 6), (7, 8)],
        };
        (mapping, fds)
    }

    fn take(mapping: &Mapping, fds: Vec<OwnedFd>, life: Life) -> Result<Target, DescriptorFault> {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        target(PidFd::open(pid).expect("ourselves"), mapping, fds, life)
    }

    #[test]
    fn what_an_honest_program_passes_is_taken() {
        let (mapping, fds) = honest();
        let target = take(&mapping, fds, Life::New).expect("it is honest");
        assert_eq!(target.pipes.len(), 2);
        assert_eq!(target.held.pipes, mapping.held_pipes);
    }

    #[test]
    fn every_descriptor_in_the_place_of_another_is_refused() {
        for (a, b) in [(0, 1), (0, 2), (1, 2), (2, 3), (3, 5)] {
            let (mapping, mut fds) = honest();
            fds.swap(a, b);
            let fault = take(&mapping, fds, Life::New).expect_err("swapped");
            let expected = match a {
                0 => DescriptorFault::NotUserfault,
                1 => DescriptorFault::NotMemory,
                _ => DescriptorFault::NotPipe,
            };
            assert_eq!(fault, expected, "{a} and {b}");
        }
    }

    #[test]
    fn too_few_and_too_many_are_refused() {
        let (mapping, mut fds) = honest();
        let last = fds.pop().expect("six");
        assert!(matches!(
            take(&mapping, fds, Life::New),
            Err(DescriptorFault::Count {
                expected: 6,
                found: 5
            })
        ));
        let (mapping, mut fds) = honest();
        fds.push(last);
        assert!(matches!(
            take(&mapping, fds, Life::New),
            Err(DescriptorFault::Count { .. })
        ));
        let (mut mapping, fds) = honest();
        mapping.held_pipes.truncate(1);
        assert!(matches!(
            take(&mapping, fds, Life::New),
            Err(DescriptorFault::Pipes { pipes: 1 })
        ));
    }

    #[test]
    fn a_userfaultfd_in_the_wrong_state_is_refused() {
        let (mapping, fds) = honest();
        assert!(matches!(
            take(&mapping, fds, Life::GoesOn),
            Err(DescriptorFault::UserfaultState)
        ));
        let (mapping, mut fds) = honest();
        let used = Userfault::from_received(fds.remove(0)).expect("it is one");
        used.handshake(FeatureSet::NONE).expect("the first one");
        fds.insert(0, used.try_clone_fd().expect("dup"));
        assert!(matches!(
            take(&mapping, fds, Life::New),
            Err(DescriptorFault::UserfaultState)
        ));
    }

    #[test]
    fn a_mapping_outside_of_its_memory_is_refused() {
        for change in [
            (|m: &mut Mapping| m.file_offset = 4096) as fn(&mut Mapping),
            |m| m.file_offset = u64::MAX - 4095,
            |m| m.file_offset = 1,
            |m| m.bytes = ByteCount::mib(2),
            |m| m.bytes = ByteCount::new(5000),
            |m| m.bytes = ByteCount::new(0),
            |m| m.base = 12345,
        ] {
            let (mut mapping, fds) = honest();
            change(&mut mapping);
            let fault = take(&mapping, fds, Life::New).expect_err("outside");
            assert_eq!(fault, DescriptorFault::Range, "{mapping:?}");
        }
    }

    #[test]
    fn memory_that_can_shrink_is_refused() {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let (mapping, mut fds) = honest();
        let loose = memfd_create(c"loose", MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
        nix::unistd::ftruncate(&loose, 1 << 20).expect("its size");
        fds[1] = loose;
        assert!(matches!(
            take(&mapping, fds, Life::New),
            Err(DescriptorFault::NotSealed)
        ));
    }

    #[test]
    fn a_pipe_that_holds_something_is_for_a_take_over_only() {
        let (mapping, fds) = honest();
        nix::unistd::write(&fds[3], &[0; 4096]).expect("room");
        assert!(matches!(
            take(&mapping, fds, Life::New),
            Err(DescriptorFault::NotPipe)
        ));
    }
}
