//! An architecture without injection: the same names, no way to come by a value of them.

use std::convert::Infallible;

use nix::unistd::Pid;

use super::InjectError;
use super::text::Gadgets;

pub(super) const SYSCALL_RETURN: &[u8] = &[];
pub(super) const SIGNAL_RESTORER: &[u8] = &[];
pub(super) const INSTRUCTION_ALIGNMENT: usize = 1;

pub(super) struct Saved(Infallible);

#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) scratch: u64,
    pub(super) end: u64,
}

impl Saved {
    pub(super) fn read(_pid: Pid) -> Result<Self, InjectError> {
        Err(InjectError::UnsupportedArchitecture)
    }
    pub(super) fn restore_registers(&self, _pid: Pid) -> Result<(), InjectError> {
        match self.0 {}
    }
    pub(super) fn signal_mask(&self) -> u64 {
        match self.0 {}
    }
    pub(super) fn stack_pointer(&self) -> u64 {
        match self.0 {}
    }
    pub(super) fn layout(&self) -> Option<Layout> {
        match self.0 {}
    }
    pub(super) fn image(&self, _layout: &Layout, _gadgets: &Gadgets) -> Vec<u8> {
        match self.0 {}
    }
    pub(super) fn prepare_call(
        &self,
        _pid: Pid,
        _layout: &Layout,
        _gadgets: &Gadgets,
        _number: i64,
        _arguments: [u64; 6],
    ) -> Result<(), InjectError> {
        match self.0 {}
    }
}

pub(super) fn call_result(_pid: Pid) -> Result<i64, InjectError> {
    Err(InjectError::UnsupportedArchitecture)
}
