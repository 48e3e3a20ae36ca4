//! A temporary folder, removed at the end.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, process};

use anyhow::Context;

pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(purpose: &str) -> anyhow::Result<Self> {
        // The time tells it from what a killed run of that id left behind. It
        // is short, as a socket's path has to be.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let name = format!("microbatch-{purpose}-{}-{now}", process::id());
        let folder = env::temp_dir().join(name);
        fs::create_dir(&folder).context("cannot create a temporary folder")?;
        Ok(Self(folder))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is at least where it may be left.
        let _ = fs::remove_dir_all(&self.0);
    }
}
