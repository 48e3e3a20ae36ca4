//! A PostgreSQL for tests and benches: a child process in a temporary folder, reached by a
//! socket in that folder and by nothing else.

#![cfg(unix)]
#![forbid(unsafe_code)]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, anyhow, bail, ensure};
use tempfile::TempDir;

/// How long a start may take on a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian has the programs of all versions, which it keeps off the PATH.
const DEBIAN: &str = "/usr/lib/postgresql";

/// What a commit has to mean, said although it is the default.
const DURABLE: [&str; 3] = ["fsync=on", "synchronous_commit=on", "full_page_writes=on"];

pub struct Server {
    programs: PathBuf,
    user: Option<User>,
    child: Child,
    // Last, so that it is removed after the server has stopped.
    folder: TempDir,
}

/// Whom to run as, because Postgres refuses to run as root.
#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// The folders with the programs: Debian's, newest first, then those on the PATH.
pub fn programs() -> impl Iterator<Item = PathBuf> {
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let mut folders: Vec<_> = versions.map(|entry| entry.path().join("bin")).collect();
    folders.sort();
    folders.reverse();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    folders.retain(|folder| folder.join("initdb").is_file());
    folders.into_iter()
}

/// Whether the programs in this folder are of this major version.
pub fn is_version(folder: &Path, major: u32) -> bool {
    let version = Command::new(folder.join("postgres"))
        .arg("--version")
        .output();
    let major = format!(" {major}.");
    version.is_ok_and(|version| String::from_utf8_lossy(&version.stdout).contains(&major))
}

impl Server {
    /// Returns once it takes connections.
    pub fn start(programs: PathBuf) -> anyhow::Result<Self> {
        // In the temporary folder itself, as a socket's path has to be short.
        let folder = tempfile::Builder::new().prefix("pg-").tempdir()?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700))?;
        // Who owns what we create is who we are.
        let user = match fs::metadata(folder.path())?.uid() {
            0 => {
                let user = unprivileged().context("no `postgres` or `nobody` to run as")?;
                chown(folder.path(), Some(user.uid), Some(user.gid))?;
                Some(user)
            }
            _ => None,
        };

        let data = folder.path().join("data");
        let made = command(&programs, "initdb", user)
            .current_dir(folder.path())
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
            .args(["--locale=C", "--pgdata"])
            .arg(&data)
            .output()
            .context("cannot run initdb")?;
        ensure!(
            made.status.success(),
            "initdb failed: {}",
            String::from_utf8_lossy(&made.stderr).trim()
        );

        let log = File::create(folder.path().join("log"))?;
        let mut command = command(&programs, "postgres", user);
        command.current_dir(folder.path()).arg("-D").arg(&data);
        command.arg("-k").arg(folder.path());
        command.args(["-c", "listen_addresses="]);
        for setting in DURABLE {
            command.args(["-c", setting]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A ctrl-c reaches us, and the server when we are done with it.
            .process_group(0)
            .spawn()
            .context("cannot run postgres")?;
        let mut server = Self {
            programs,
            user,
            child,
            folder,
        };
        server.wait()?;
        Ok(server)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if self.child.try_wait()?.is_some() {
                let log = fs::read_to_string(self.folder.path().join("log"))?;
                bail!("postgres ended: {}", log.trim());
            }
            let ready = command(&self.programs, "pg_isready", self.user)
                .arg("-q")
                .arg("-h")
                .arg(self.folder.path())
                .status();
            if ready.is_ok_and(|status| status.success()) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(anyhow!("postgres did not start"))
    }

    /// The folder with the socket, which has the default port's name.
    pub fn socket(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = command(&self.programs, "pg_ctl", self.user)
            .current_dir(self.folder.path())
            .args(["stop", "-s", "-m", "immediate", "-D"])
            .arg(self.folder.path().join("data"))
            .status();
        if !stopped.is_ok_and(|status| status.success()) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn command(programs: &Path, name: &str, user: Option<User>) -> Command {
    let mut command = Command::new(programs.join(name));
    // Settings meant for another server.
    for name in ["PGDATA", "PGHOST", "PGPORT", "PGOPTIONS"] {
        command.env_remove(name);
    }
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

fn unprivileged() -> Option<User> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    ["postgres", "nobody"].into_iter().find_map(|name| {
        let mut lines = passwd.lines().map(|line| line.split(':'));
        let mut fields = lines.find_map(|mut line| (line.next() == Some(name)).then_some(line))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { uid, gid })
    })
}
