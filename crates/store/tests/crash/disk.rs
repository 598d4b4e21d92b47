//! A disk that loses power: what was not synced is kept in part, out of order and torn.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// What is surely on the disk.
    synced: Vec<u8>,
    /// What the process sees.
    seen: Vec<u8>,
    /// What was done since the last sync.
    pending: Vec<Pending>,
    /// Changes to go before the power fails.
    left: usize,
}

#[derive(Clone, Debug)]
enum Pending {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

impl Pending {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Pending::Length(length) => image.resize(*length, 0),
            Pending::Write { offset, data } => {
                let end = offset + data.len();
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[*offset..end].copy_from_slice(data);
            }
        }
    }
}

impl Disk {
    /// A disk that holds `image` and fails at the `left`th change from now.
    pub fn new(image: Vec<u8>, left: usize) -> Self {
        let state = State { synced: image.clone(), seen: image, pending: Vec::new(), left };
        Disk(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("disk")
    }

    pub fn failed(&self) -> bool {
        self.state().left == 0
    }

    /// What an orderly shutdown leaves.
    pub fn contents(&self) -> Vec<u8> {
        self.state().seen.clone()
    }

    /// What is found when the power is back.
    pub fn after_power_loss(&self, seed: u64) -> Vec<u8> {
        let mut rng = StdRng::seed_from_u64(seed);
        let state = self.state();
        let mut image = state.synced.clone();
        // A file system keeps the order of changes of the length, not of data against them.
        let lengths: Vec<&Pending> =
            state.pending.iter().filter(|p| matches!(p, Pending::Length(_))).collect();
        let n_lengths = rng.random_range(0..=lengths.len());
        for length in &lengths[..n_lengths] {
            length.apply(&mut image);
        }
        let chance = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        let mut sectors: Vec<(usize, &[u8])> = state
            .pending
            .iter()
            .filter_map(|pending| match pending {
                Pending::Write { offset, data } => Some((*offset, data)),
                Pending::Length(_) => None,
            })
            .flat_map(|(offset, data)| {
                let starts = (0..data.len()).step_by(SECTOR);
                starts.map(move |at| (offset + at, &data[at..data.len().min(at + SECTOR)]))
            })
            .collect();
        sectors.shuffle(&mut rng);
        for (offset, data) in sectors {
            // Data beyond the end has nowhere to be.
            let end = (offset + data.len()).min(image.len());
            if offset < end && rng.random_bool(chance) {
                image[offset..end].copy_from_slice(&data[..end - offset]);
            }
        }
        image
    }
}

fn power_failure() -> io::Error {
    io::Error::other("the power failed")
}

impl State {
    fn change(&mut self, pending: Pending) -> io::Result<()> {
        if self.left == 0 {
            return Err(power_failure());
        }
        self.left -= 1;
        // The change at which the power fails is under way: it may reach the disk too.
        pending.apply(&mut self.seen);
        self.pending.push(pending);
        if self.left == 0 { Err(power_failure()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if state.left == 0 {
            return Err(power_failure());
        }
        let start = offset as usize;
        let found = state.seen.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state().change(Pending::Length(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.left <= 1 {
            state.left = 0;
            return Err(power_failure());
        }
        state.left -= 1;
        for pending in state.pending.drain(..) {
            pending.apply(&mut state.synced);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.state().change(Pending::Write { offset: offset as usize, data: data.to_vec() })
    }
}
