//! Each target, on bytes made from its corpus: a few thousand by `cargo test`, for 10 s each by
//! `scripts/test`. The seed is fixed, so that what failed fails again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const SEED: u64 = 4;
const LONGEST: usize = 4096;
/// What a target may hold at once for an input: some copies of it, and one buffer that is taken in advance.
const MEMORY: usize = 64 * LONGEST;
/// What parsers look for, and numbers at their limits.
const WORDS: [&[u8]; 16] = [
    b"\r\n",
    b"\r\n\r\n",
    b"--",
    b"--x1",
    b"--x1--",
    b"boundary=",
    b"name=\"file\"",
    b"filename=\"",
    b"\"",
    b"%22",
    b"\0\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x02{}",
    b"sandbox.",
    b"65536-",
    b"-",
];

/// Knows how much the thread holds, and how much it held at most.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes on to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Threads that end free what others made: the numbers may go astray there, and are not used.
        HELD.set(HELD.get().wrapping_add(layout.size()));
        MOST.set(MOST.get().max(HELD.get()));
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().wrapping_sub(layout.size()));
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).expect("the target's corpus");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    // The order of a directory is not the same everywhere.
    files.sort();
    assert!(!files.is_empty(), "no corpus in {}", folder.display());
    files.iter().map(|file| std::fs::read(file).expect("a file")).collect()
}

/// Changes an input in a few places.
fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut StdRng) {
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        let end = random.random_range(at..=bytes.len());
        match random.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = random.random(),
            2 => bytes.insert(at, random.random()),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copied = bytes[at..end].to_vec();
                bytes.splice(at..at, copied);
            }
            5 => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            _ => {
                let other = &others[random.random_range(0..others.len())];
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
        bytes.truncate(LONGEST);
    }
}

/// Runs a target on its corpus and on what is made from it, until `enough` of the inputs and the time.
fn run(target: fn(&[u8]), name: &str, enough: impl Fn(u64, Duration) -> bool) {
    let seeds = corpus(name);
    let mut random = StdRng::seed_from_u64(SEED);
    let mut inputs = seeds.clone();
    let begun = Instant::now();
    let mut count = 0;
    while count < seeds.len() as u64 || !enough(count, begun.elapsed()) {
        let input = match usize::try_from(count).ok().and_then(|index| seeds.get(index)) {
            Some(seed) => seed.clone(),
            None => {
                // Changes upon changes get further, but end as noise, which every parser refuses at once.
                let from = if random.random_bool(0.7) { &seeds } else { &inputs };
                let mut input = from[random.random_range(0..from.len())].clone();
                mutate(&mut input, &seeds, &mut random);
                input
            }
        };
        let before = HELD.get();
        MOST.set(before);
        let result = catch_unwind(|| target(&input));
        let held = MOST.get() - before;
        assert!(result.is_ok(), "{name}, input {count}: {:?}", String::from_utf8_lossy(&input));
        assert!(held <= MEMORY, "{name}, input {count} of {} bytes: held {held}", input.len());
        if inputs.len() < 256 {
            inputs.push(input);
        } else {
            let place = random.random_range(seeds.len()..inputs.len());
            inputs[place] = input;
        }
        count += 1;
    }
    println!("{name}: {count} inputs in {:.1} s", begun.elapsed().as_secs_f64());
}

macro_rules! targets {
    ($($target:ident => $name:ident, $long:ident;)*) => {$(
        #[test]
        fn $name() {
            run(sandyard_fuzz::$target, stringify!($name), |count, _| count >= 3000);
        }

        #[test]
        #[ignore = "runs for 10 s"]
        fn $long() {
            run(sandyard_fuzz::$target, stringify!($name), |_, time| time >= Duration::from_secs(10));
        }
    )*};
}

targets! {
    fuzz_envelopes => envelopes, envelopes_for_a_while;
    fuzz_upload => upload, upload_for_a_while;
    fuzz_sandbox_host => sandbox_host, sandbox_host_for_a_while;
}
