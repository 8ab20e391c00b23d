//! Reads and writes that survive SIGBUS: the handler steps over the one instruction that may raise it.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// SIGBUS signals that were caught.
pub static CAUGHT: AtomicU64 = AtomicU64::new(0);
const GOT_SIGBUS: u64 = 0xb0_5000_0b05;

#[cfg(target_arch = "x86_64")]
extern "C" fn step_over(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    CAUGHT.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel hands a ucontext to a SA_SIGINFO handler.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    // `mov rax, [rdi]` and `mov [rdi], rsi` are three bytes long.
    registers[libc::REG_RIP as usize] += 3;
    registers[libc::REG_RAX as usize] = GOT_SIGBUS as i64;
}

#[cfg(target_arch = "aarch64")]
extern "C" fn step_over(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    CAUGHT.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel hands a ucontext to a SA_SIGINFO handler.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.pc += 4;
    context.uc_mcontext.regs[0] = GOT_SIGBUS;
}

fn catch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler = SigHandler::SigAction(step_over);
        let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler changes registers of the interrupted thread and an atomic only.
        unsafe { sigaction(Signal::SIGBUS, &action) }.expect("a handler");
    });
}

/// The word at `at`, or `None` if the access raised SIGBUS.
pub fn read(at: *const u64) -> Option<u64> {
    catch();
    let value: u64;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads mapped memory; if the page is lost, the handler steps over the instruction.
    unsafe {
        std::arch::asm!("mov rax, [rdi]", in("rdi") at, out("rax") value, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("ldr x0, [x1]", in("x1") at, out("x0") value, options(nostack));
    }
    (value != GOT_SIGBUS).then_some(value)
}

/// Writes the word at `at`. False: the access raised SIGBUS.
///
/// # Safety
/// Nobody holds a reference to the word that is not an atomic's.
pub unsafe fn write(at: *mut u64, value: u64) -> bool {
    catch();
    let told: u64;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: writes mapped memory, as the caller says; if the page is lost, the handler steps over the instruction.
    unsafe {
        std::arch::asm!("mov [rdi], rsi", in("rdi") at, in("rsi") value, inout("rax") 0_u64 => told, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("str x2, [x1]", in("x1") at, in("x2") value, inout("x0") 0_u64 => told, options(nostack));
    }
    told != GOT_SIGBUS
}
