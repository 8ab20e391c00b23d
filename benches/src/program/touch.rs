//! The patterns. Every one checks what it reads: a figure for wrong bytes is no figure.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use super::memory::Memory;
use crate::samples::Latencies;

const PAGE_BYTES: usize = 4096;
const WORDS: usize = PAGE_BYTES / 8;

/// What a pattern did.
pub(super) struct Touched {
    pub(super) pages: u64,
    /// Of the touches alone.
    pub(super) elapsed: Duration,
    /// Latencies of the touches that found their page missing, where they were taken.
    pub(super) missing: Latencies,
}

/// A page that does not hold what was written to it.
#[derive(Debug, thiserror::Error)]
#[error("page {page} holds {found:#x} where {expected:#x} was written")]
pub(crate) struct WrongPage {
    page: usize,
    found: u64,
    expected: u64,
}

fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where the memory is, asked for once: the same for every kind, so that only the memory itself differs.
struct Span<'a> {
    start: *mut u8,
    bytes: usize,
    /// Exclusive for as long as the span is used.
    _memory: PhantomData<&'a mut Memory>,
}

impl<'a> Span<'a> {
    fn of(memory: &'a mut Memory) -> Self {
        Self {
            start: memory.start(),
            bytes: memory.bytes(),
            _memory: PhantomData,
        }
    }
}

fn pages(memory: &Span<'_>) -> usize {
    memory.bytes / PAGE_BYTES
}

fn word(memory: &Span<'_>, page: usize, index: usize) -> *mut u64 {
    assert!(
        page < pages(memory) && index < WORDS,
        "outside of the mapping"
    );
    // SAFETY: inside of the mapping, as just checked; pages start at multiples of 8.
    unsafe { memory.start.cast::<u64>().add(page * WORDS + index) }
}

fn check(page: usize, found: u64) -> Result<(), WrongPage> {
    let expected = mix(page as u64);
    if found == expected {
        Ok(())
    } else {
        Err(WrongPage {
            page,
            found,
            expected,
        })
    }
}

pub(super) fn fill(memory: &mut Memory) -> Result<Touched, WrongPage> {
    let memory = &Span::of(memory);
    let count = pages(memory);
    let start = Instant::now();
    for page in 0..count {
        let mut value = mix(page as u64);
        for index in 0..WORDS {
            // SAFETY: a word of the mapping, which nobody else uses.
            unsafe { word(memory, page, index).write_volatile(value) };
            value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        }
    }
    Ok(Touched {
        pages: count as u64,
        elapsed: start.elapsed(),
        missing: Latencies::new(),
    })
}

/// A random order of all pages: every page once in each round of `pages` touches.
struct Shuffled {
    order: Vec<u32>,
    next: usize,
}

impl Shuffled {
    fn new(pages: usize, seed: u64) -> Self {
        let mut order: Vec<u32> = (0..pages as u32).collect();
        for at in (1..order.len()).rev() {
            let other = mix(seed.wrapping_add(at as u64)) % (at as u64 + 1);
            order.swap(at, other as usize);
        }
        Self { order, next: 0 }
    }

    fn next(&mut self) -> usize {
        let page = self.order[self.next];
        self.next = (self.next + 1) % self.order.len();
        page as usize
    }
}

/// Whether the page is in memory, as the kernel has it.
fn is_present(memory: &Span<'_>, page: usize) -> bool {
    let mut present = 0u8;
    // SAFETY: the page is part of the mapping, and mincore writes one byte for one page.
    let answer = unsafe {
        libc::mincore(
            memory.start.add(page * PAGE_BYTES).cast(),
            PAGE_BYTES,
            &raw mut present,
        )
    };
    answer == 0 && present & 1 == 1
}

pub(super) fn random(
    memory: &mut Memory,
    count: usize,
    seed: u64,
    writes_per_hundred: u32,
) -> Result<Touched, WrongPage> {
    let memory = &Span::of(memory);
    let mut order = Shuffled::new(pages(memory), seed);
    let mut missing = Latencies::new();
    let mut elapsed = Duration::ZERO;
    for n in 0..count as u64 {
        let page = order.next();
        let was_present = is_present(memory, page);
        let writes = mix(seed ^ n.rotate_left(32)) % 100 < u64::from(writes_per_hundred);
        let start = Instant::now();
        // SAFETY: words of the mapping, which nobody else uses.
        let found = unsafe {
            if writes {
                word(memory, page, 1).write_volatile(n);
            }
            word(memory, page, 0).read_volatile()
        };
        let took = start.elapsed();
        check(page, found)?;
        elapsed += took;
        if !was_present {
            missing.record(took);
        }
    }
    Ok(Touched {
        pages: count as u64,
        elapsed,
        missing,
    })
}

pub(super) fn random_blind(
    memory: &mut Memory,
    count: usize,
    seed: u64,
) -> Result<Touched, WrongPage> {
    let memory = &Span::of(memory);
    let mut order = Shuffled::new(pages(memory), seed);
    let start = Instant::now();
    for _ in 0..count {
        let page = order.next();
        // SAFETY: a word of the mapping, which nobody else uses.
        check(page, unsafe { word(memory, page, 0).read_volatile() })?;
    }
    Ok(Touched {
        pages: count as u64,
        elapsed: start.elapsed(),
        missing: Latencies::new(),
    })
}

pub(super) fn scan(memory: &mut Memory) -> Result<Touched, WrongPage> {
    let memory = &Span::of(memory);
    let count = pages(memory);
    let mut sum = 0u64;
    let start = Instant::now();
    for page in 0..count {
        // SAFETY: the page's words are part of the mapping, and nobody writes them meanwhile.
        let words = unsafe { std::slice::from_raw_parts(word(memory, page, 0), WORDS) };
        check(page, words[0])?;
        sum = words.iter().fold(sum, |sum, word| sum ^ word);
    }
    let elapsed = start.elapsed();
    std::hint::black_box(sum);
    Ok(Touched {
        pages: count as u64,
        elapsed,
        missing: Latencies::new(),
    })
}

pub(super) fn walk(memory: &mut Memory) -> Result<Touched, WrongPage> {
    let memory = &Span::of(memory);
    let count = pages(memory);
    let start = Instant::now();
    for page in 0..count {
        // SAFETY: a word of the mapping, which nobody else uses.
        check(page, unsafe { word(memory, page, 0).read_volatile() })?;
    }
    Ok(Touched {
        pages: count as u64,
        elapsed: start.elapsed(),
        missing: Latencies::new(),
    })
}
