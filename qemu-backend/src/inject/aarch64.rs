//! aarch64: registers, and the signal frame from which a thread restores itself.
//!
//! ```text
//!   higher addresses
//!   | thread's own stack        <- its sp (no red zone)
//!   | rt_sigframe: siginfo, ucontext, records of vector registers   <- sp during the calls
//!   | scratch                      what the calls read and write
//!   lower addresses               lr during the calls: the restorer
//! ```
//!
//! The kernel prepares the restart of an interrupted call before the thread stops for us: the
//! registers we save already point at it. SVE state beyond the 128-bit registers is not in the frame;
//! it is only ever needed if we are killed in the middle.

use nix::errno::Errno;
use nix::unistd::Pid;

use super::InjectError;
use super::text::Gadgets;
use super::tracee::{SCRATCH_BYTES, get_register_set, get_signal_mask};

/// `svc #0; ret`.
pub(super) const SYSCALL_RETURN: &[u8] = &[0x01, 0x00, 0x00, 0xd4, 0xc0, 0x03, 0x5f, 0xd6];
/// `mov x8, #139; svc #0`: rt_sigreturn, as the vDSO writes it.
pub(super) const SIGNAL_RESTORER: &[u8] = &[0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];
/// Instructions have 4 bytes.
pub(super) const INSTRUCTION_ALIGNMENT: usize = 4;

const NT_PRSTATUS: libc::c_int = 1;
const NT_PRFPREG: libc::c_int = 2;
const NT_ARM_SYSTEM_CALL: libc::c_int = 0x404;

/// x0 to x30, sp, pc, pstate.
const REGISTERS: usize = 34;
const X8: usize = 8;
const LR: usize = 30;
const SP: usize = 31;
const PC: usize = 32;
/// 32 vector registers, fpsr, fpcr (and padding).
const VECTOR_BYTES: usize = 512;

// Offsets in the frame: siginfo, then `struct ucontext`, then `struct sigcontext`.
const FRAME_SIGMASK: usize = 128 + 40;
const FRAME_REGISTERS: usize = 128 + 176 + 8;
const FRAME_RECORDS: usize = 592;
const FRAME_BYTES: usize = FRAME_RECORDS + 4096;
const FPSIMD_MAGIC: u32 = 0x4650_8001;
const FPSIMD_BYTES: u32 = 528;

const _: () = assert!(FRAME_SIGMASK - 128 == std::mem::offset_of!(libc::ucontext_t, uc_sigmask));
const _: () =
    assert!(FRAME_REGISTERS - 128 - 8 == std::mem::offset_of!(libc::ucontext_t, uc_mcontext));

/// A stopped thread's whole state.
pub(super) struct Saved {
    registers: [u64; REGISTERS],
    vectors: Vec<u8>,
    signal_mask: u64,
}

/// Where on the thread's stack we keep our things.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// The lowest address in use; also where the scratch bytes start.
    pub(super) scratch: u64,
    frame: u64,
    /// The first address that is the thread's own again.
    pub(super) end: u64,
}

impl Saved {
    /// Reads the state of a stopped thread.
    pub(super) fn read(pid: Pid) -> Result<Self, InjectError> {
        Ok(Self {
            registers: read_registers(pid)?,
            vectors: get_register_set(pid, NT_PRFPREG, VECTOR_BYTES + 16)?,
            signal_mask: get_signal_mask(pid)?,
        })
    }

    /// Writes the general registers back; the others were never touched.
    pub(super) fn restore_registers(&self, pid: Pid) -> Result<(), InjectError> {
        write_registers(pid, &self.registers)
    }

    /// The mask of signals that the thread had blocked.
    pub(super) fn signal_mask(&self) -> u64 {
        self.signal_mask
    }

    /// Where its stack ends.
    pub(super) fn stack_pointer(&self) -> u64 {
        self.registers[SP]
    }

    /// Places our things below the stack; `None` if the stack pointer is nonsense.
    pub(super) fn layout(&self) -> Option<Layout> {
        let end = self.registers[SP];
        let frame = end.checked_sub(FRAME_BYTES as u64)? & !15;
        let scratch = frame.checked_sub(SCRATCH_BYTES as u64)?;
        Some(Layout {
            scratch,
            frame,
            end,
        })
    }

    /// The bytes from `layout.scratch` on: scratch and frame.
    pub(super) fn image(&self, layout: &Layout, _gadgets: &Gadgets) -> Vec<u8> {
        let mut image = vec![0; (layout.end - layout.scratch) as usize];
        let frame = &mut image[(layout.frame - layout.scratch) as usize..];
        frame[FRAME_SIGMASK..FRAME_SIGMASK + 8].copy_from_slice(&self.signal_mask.to_le_bytes());
        for (index, value) in self.registers.iter().enumerate() {
            let at = FRAME_REGISTERS + index * 8;
            frame[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if self.vectors.len() >= VECTOR_BYTES + 8 {
            let record = &mut frame[FRAME_RECORDS..];
            record[0..4].copy_from_slice(&FPSIMD_MAGIC.to_le_bytes());
            record[4..8].copy_from_slice(&FPSIMD_BYTES.to_le_bytes());
            // fpsr and fpcr come first in the record, last in the register set.
            record[8..16].copy_from_slice(&self.vectors[VECTOR_BYTES..VECTOR_BYTES + 8]);
            record[16..16 + VECTOR_BYTES].copy_from_slice(&self.vectors[..VECTOR_BYTES]);
        }
        image
    }

    /// Points the thread at `svc; ret`, with the frame as its stack.
    pub(super) fn prepare_call(
        &self,
        pid: Pid,
        layout: &Layout,
        gadgets: &Gadgets,
        number: i64,
        arguments: [u64; 6],
    ) -> Result<(), InjectError> {
        let mut registers = self.registers;
        registers[..6].copy_from_slice(&arguments);
        registers[X8] = number as u64;
        registers[LR] = gadgets.restorer;
        registers[SP] = layout.frame;
        registers[PC] = gadgets.syscall;
        write_registers(pid, &registers)?;
        // Not in a call: nothing is to be restarted.
        write_set(pid, NT_ARM_SYSTEM_CALL, &(-1_i32).to_ne_bytes())
    }
}

/// What the thread's call gave, at its exit stop.
pub(super) fn call_result(pid: Pid) -> Result<i64, InjectError> {
    read_registers(pid).map(|registers| registers[0] as i64)
}

fn read_registers(pid: Pid) -> Result<[u64; REGISTERS], InjectError> {
    let bytes = get_register_set(pid, NT_PRSTATUS, REGISTERS * 8)?;
    let mut registers = [0; REGISTERS];
    for (value, bytes) in registers.iter_mut().zip(bytes.chunks_exact(8)) {
        *value = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    Ok(registers)
}

fn write_registers(pid: Pid, registers: &[u64; REGISTERS]) -> Result<(), InjectError> {
    let bytes: Vec<u8> = registers
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect();
    write_set(pid, NT_PRSTATUS, &bytes)
}

fn write_set(pid: Pid, set: libc::c_int, bytes: &[u8]) -> Result<(), InjectError> {
    let mut window = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the iovec describes `bytes`, which the kernel only reads, and which outlives the call.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGSET,
            pid.as_raw(),
            libc::c_long::from(set),
            &raw mut window,
        )
    };
    Errno::result(done)
        .map(drop)
        .map_err(|source| InjectError::ptrace(pid, "SETREGSET", source))
}
