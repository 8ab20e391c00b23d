//! What becomes of machines: cut off for a time, killed, started again.

use std::time::Duration;

use mycoram_fabric::transport::sim::SimNetwork;

use super::{Machine, Machines, core};

fn machine<T>(machines: &Machines, index: usize, change: impl FnOnce(&mut Machine) -> T) -> T {
    change(&mut machines[index].lock().expect("no panic"))
}

/// Cuts a machine off for `length`. False: it is dead, cut off already, or to be left alone still.
pub(crate) fn cut(
    network: &SimNetwork,
    machines: &Machines,
    index: usize,
    length: Duration,
) -> bool {
    let now = network.now();
    machine(machines, index, |machine| {
        let spared = machine.cut_since.is_some() || machine.left_alone_until > now;
        let struck = machine.core.is_some() && !spared;
        if struck {
            machine.cut_since = Some(now);
            machine.cut_for = length;
            network.cut(machine.data);
        }
        struck
    })
}

/// Ends the cuts whose time is over. Who was cut off is left alone for as long as that was.
pub(crate) fn heal_in_time(network: &SimNetwork, machines: &Machines) {
    let now = network.now();
    for index in 0..machines.len() {
        machine(machines, index, |machine| {
            let over = |since| now - since >= machine.cut_for;
            if machine.cut_since.is_some_and(over) {
                machine.cut_since = None;
                machine.left_alone_until = now + machine.cut_for;
                network.heal(machine.data);
            }
        });
    }
}

/// Kills the node's process, or the machine with it. False: it was dead.
pub(crate) fn kill(
    network: &SimNetwork,
    machines: &Machines,
    index: usize,
    whole_machine: bool,
) -> bool {
    machine(machines, index, |machine| {
        let alive = machine.core.take().is_some();
        if alive {
            machine.machine_died = whole_machine;
            match whole_machine {
                true => network.kill_machine(machine.data),
                false => network.kill_process(machine.data),
            }
        }
        alive
    })
}

/// Starts the node of a dead machine again, empty. False: it lives, or cannot be reached.
pub(crate) fn restart(network: &SimNetwork, machines: &Machines, index: usize) -> bool {
    machine(machines, index, |machine| {
        let dead = machine.core.is_none() && machine.cut_since.is_none();
        if dead {
            machine.incarnation += 1;
            machine.machine_died = false;
            let (core, _) = core(network, Some(machine.data), machine.incarnation);
            machine.core = Some(core);
        }
        dead
    })
}
