//! x86_64: registers, and the signal frame from which a thread restores itself.
//!
//! ```text
//!   higher addresses
//!   | thread's own stack        <- its sp
//!   | 128 bytes red zone           may be in use
//!   | xsave area, 64-aligned       vector registers, as ptrace gives them
//!   | rt_sigframe: ucontext        general registers, signal mask, pointer to the xsave area
//!   |              return address <- sp during the calls: the restorer
//!   | scratch                      what the calls read and write
//!   lower addresses
//! ```

use nix::sys::ptrace;
use nix::unistd::Pid;

use super::InjectError;
use super::text::Gadgets;
use super::tracee::{SCRATCH_BYTES, get_register_set, get_signal_mask};

/// `syscall; ret`.
pub(super) const SYSCALL_RETURN: &[u8] = &[0x0f, 0x05, 0xc3];
/// `mov $15, %rax; syscall`: rt_sigreturn, as both glibc and musl write it.
pub(super) const SIGNAL_RESTORER: &[u8] = &[0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05];
/// Instructions start anywhere.
pub(super) const INSTRUCTION_ALIGNMENT: usize = 1;

const RED_ZONE_BYTES: u64 = 128;
const NT_X86_XSTATE: libc::c_int = 0x202;
/// Larger than any xsave area that exists (AMX makes it 11 KiB).
const XSTATE_MAX_BYTES: usize = 16 << 10;
const XSTATE_ALIGNMENT: u64 = 64;
const XSTATE_MAGIC1: u32 = 0x4650_5853;
const XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Where the software-reserved bytes lie in an fxsave area.
const XSTATE_SOFTWARE_OFFSET: usize = 464;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

// Offsets in the frame: 8 bytes of return address, then `struct ucontext`.
const FRAME_UCONTEXT: usize = 8;
const FRAME_GREGS: usize = FRAME_UCONTEXT + 40;
const FRAME_SEGMENTS: usize = FRAME_GREGS + 18 * 8;
const FRAME_FPSTATE: usize = FRAME_SEGMENTS + 8 + 4 * 8;
const FRAME_SIGMASK: usize = FRAME_FPSTATE + 8 + 64;
const FRAME_BYTES: usize = FRAME_SIGMASK + 8;

const _: () =
    assert!(FRAME_GREGS - FRAME_UCONTEXT == std::mem::offset_of!(libc::ucontext_t, uc_mcontext));
const _: () =
    assert!(FRAME_SIGMASK - FRAME_UCONTEXT == std::mem::offset_of!(libc::ucontext_t, uc_sigmask));

// What the kernel leaves in rax of a call that it means to restart (linux/errno.h; never seen by programs).
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
/// The length of `syscall`.
const SYSCALL_BYTES: u64 = 2;

/// A stopped thread's whole state.
pub(super) struct Saved {
    registers: libc::user_regs_struct,
    xstate: Vec<u8>,
    signal_mask: u64,
}

/// Where on the thread's stack we keep our things.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// The lowest address in use; also where the scratch bytes start.
    pub(super) scratch: u64,
    frame: u64,
    xstate: u64,
    /// The first address that is the thread's own again.
    pub(super) end: u64,
}

impl Saved {
    /// Reads the state of a stopped thread.
    pub(super) fn read(pid: Pid) -> Result<Self, InjectError> {
        let registers =
            ptrace::getregs(pid).map_err(|source| InjectError::ptrace(pid, "GETREGS", source))?;
        Ok(Self {
            registers,
            xstate: get_register_set(pid, NT_X86_XSTATE, XSTATE_MAX_BYTES)?,
            signal_mask: get_signal_mask(pid)?,
        })
    }

    /// Writes the general registers back; the others were never touched.
    pub(super) fn restore_registers(&self, pid: Pid) -> Result<(), InjectError> {
        ptrace::setregs(pid, self.registers)
            .map_err(|source| InjectError::ptrace(pid, "SETREGS", source))
    }

    /// The mask of signals that the thread had blocked.
    pub(super) fn signal_mask(&self) -> u64 {
        self.signal_mask
    }

    /// Where its stack ends.
    pub(super) fn stack_pointer(&self) -> u64 {
        self.registers.rsp
    }

    /// Places our things below the stack; `None` if the stack pointer is nonsense.
    pub(super) fn layout(&self) -> Option<Layout> {
        let end = self.registers.rsp.checked_sub(RED_ZONE_BYTES)?;
        let xstate = align_down(
            end.checked_sub(self.xstate.len() as u64 + 4)?,
            XSTATE_ALIGNMENT,
        );
        let frame = align_down(xstate.checked_sub(FRAME_BYTES as u64)?, 16);
        let scratch = align_down(frame.checked_sub(SCRATCH_BYTES as u64)?, 16);
        Some(Layout {
            scratch,
            frame,
            xstate,
            end,
        })
    }

    /// The bytes from `layout.scratch` on: scratch, frame, vector registers.
    pub(super) fn image(&self, layout: &Layout, gadgets: &Gadgets) -> Vec<u8> {
        let mut image = vec![0; (layout.end - layout.scratch) as usize];
        let frame = (layout.frame - layout.scratch) as usize;
        image[frame..frame + FRAME_BYTES].copy_from_slice(&self.frame(layout, gadgets));

        let xstate = (layout.xstate - layout.scratch) as usize;
        let bytes = self.xstate.len();
        image[xstate..xstate + bytes].copy_from_slice(&self.xstate);
        if bytes >= XSTATE_SOFTWARE_OFFSET + 20 {
            // ptrace leaves the feature bits at +8 of what is the magic's place in a frame: they
            // stand first in its software bytes, at the same spot a frame has magic and size.
            let features = u64::from_le_bytes(
                self.xstate[XSTATE_SOFTWARE_OFFSET..XSTATE_SOFTWARE_OFFSET + 8]
                    .try_into()
                    .unwrap_or_default(),
            );
            let software = &mut image[xstate + XSTATE_SOFTWARE_OFFSET..];
            software[0..4].copy_from_slice(&XSTATE_MAGIC1.to_le_bytes());
            software[4..8].copy_from_slice(&(bytes as u32 + 4).to_le_bytes());
            software[8..16].copy_from_slice(&features.to_le_bytes());
            software[16..20].copy_from_slice(&(bytes as u32).to_le_bytes());
            image[xstate + bytes..xstate + bytes + 4].copy_from_slice(&XSTATE_MAGIC2.to_le_bytes());
        }
        image
    }

    fn frame(&self, layout: &Layout, gadgets: &Gadgets) -> [u8; FRAME_BYTES] {
        let r = &self.registers;
        let (rip, rax) = resume_point(r);
        let mut frame = [0; FRAME_BYTES];
        let mut put =
            |at: usize, value: u64| frame[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(0, gadgets.restorer);
        put(
            FRAME_UCONTEXT,
            UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
        );
        // The alternate signal stack stays zero: the kernel refuses a stack of no size and keeps the old one.
        let gregs = [
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx,
            r.rdx, rax, r.rcx, r.rsp, rip, r.eflags,
        ];
        for (index, value) in gregs.into_iter().enumerate() {
            put(FRAME_GREGS + index * 8, value);
        }
        put(FRAME_SEGMENTS, r.cs & 0xffff | (r.ss & 0xffff) << 48);
        put(FRAME_FPSTATE, layout.xstate);
        put(FRAME_SIGMASK, self.signal_mask);
        frame
    }

    /// Points the thread at `syscall; ret`, with the frame as its stack.
    pub(super) fn prepare_call(
        &self,
        pid: Pid,
        layout: &Layout,
        gadgets: &Gadgets,
        number: i64,
        arguments: [u64; 6],
    ) -> Result<(), InjectError> {
        let mut registers = self.registers;
        registers.rip = gadgets.syscall;
        registers.rsp = layout.frame;
        // Not in a call: the kernel must not restart the interrupted one with our registers.
        registers.orig_rax = u64::MAX;
        registers.rax = number as u64;
        [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
            registers.r9,
        ] = arguments;
        ptrace::setregs(pid, registers)
            .map_err(|source| InjectError::ptrace(pid, "SETREGS", source))
    }
}

/// What the thread's call gave, at its exit stop.
pub(super) fn call_result(pid: Pid) -> Result<i64, InjectError> {
    let registers =
        ptrace::getregs(pid).map_err(|source| InjectError::ptrace(pid, "GETREGS", source))?;
    Ok(registers.rax as i64)
}

/// Where a thread that restores itself must go on: an interrupted call is made again, as the kernel would.
fn resume_point(r: &libc::user_regs_struct) -> (u64, u64) {
    if (r.orig_rax as i64) < 0 {
        return (r.rip, r.rax);
    }
    match r.rax as i64 {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => (r.rip - SYSCALL_BYTES, r.orig_rax),
        ERESTART_RESTARTBLOCK => (r.rip - SYSCALL_BYTES, libc::SYS_restart_syscall as u64),
        _ => (r.rip, r.rax),
    }
}

fn align_down(address: u64, alignment: u64) -> u64 {
    address & !(alignment - 1)
}
