//! A PostgreSQL for tests and benches: a child process in a temporary folder, reached by a
//! socket in that folder and, if it is asked to, by a port of this machine. It can be
//! killed and started again.

#![cfg(unix)]
#![forbid(unsafe_code)]

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, iter, thread};

use anyhow::{Context, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a start may take on a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian has the programs of all versions, which it keeps off the PATH.
const DEBIAN: &str = "/usr/lib/postgresql";

/// What a commit has to mean, said although it is the default.
const DURABLE: [&str; 3] = ["fsync=on", "synchronous_commit=on", "full_page_writes=on"];

/// The port that names the socket of a server without one.
const DEFAULT_PORT: u16 = 5432;

/// Ports that no connection gets as its own: one that is refused for long enough would be
/// connected with itself, and the port in use when the server is started again.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Members need a password on the port. All others need none.
const WITH_PASSWORD: &str = "with_password";

pub struct Server {
    programs: PathBuf,
    user: Option<User>,
    port: Option<u16>,
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
    /// Returns once it takes connections, by its socket.
    pub fn start(programs: PathBuf) -> anyhow::Result<Self> {
        Self::start_new(programs, None)
    }

    /// Returns once it takes connections, by its socket and by a port of 127.0.0.1.
    pub fn start_on_port(programs: PathBuf) -> anyhow::Result<Self> {
        Self::start_new(programs, Some(free_port()?))
    }

    fn start_new(programs: PathBuf, port: Option<u16>) -> anyhow::Result<Self> {
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
        // The first line that fits decides.
        let access = data.join("pg_hba.conf");
        let rules = fs::read_to_string(&access)?;
        let first = format!("host all +{WITH_PASSWORD} all scram-sha-256\n");
        fs::write(&access, first + &rules)?;

        let child = spawn(&programs, user, folder.path(), port)?;
        let mut server = Self {
            programs,
            user,
            port,
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
                .args(["-p", &self.port.unwrap_or(DEFAULT_PORT).to_string()])
                .status();
            if ready.is_ok_and(|status| status.success()) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(anyhow!("postgres did not start"))
    }

    /// Kills all its processes at once, as a crash does (SIGKILL). Its folder stays as it is.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let main = Pid::from_child(&self.child);
        // Stopped first, so that it starts no more of them. Each has a process group of
        // its own.
        kill_process(main, Signal::STOP)?;
        let is_stopped =
            || state_and_parent(main.as_raw_pid()).is_none_or(|(state, _)| state == "T");
        while !is_stopped() && self.child.try_wait()?.is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        let children = children(self.child.id())?;
        kill_process(main, Signal::KILL)?;
        for child in &children {
            // It may have ended by itself.
            let _ = kill_process(*child, Signal::KILL);
        }
        self.child.wait()?;
        // As long as one of them has the shared memory, no server starts on the folder.
        let started = Instant::now();
        while children.iter().any(|child| is_running(*child)) {
            ensure!(started.elapsed() < PATIENCE, "processes outlive SIGKILL");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Starts it again after [`kill`](Self::kill), on the same folder and port. Returns
    /// once it takes connections.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.try_wait()?.is_some(), "it runs");
        self.child = spawn(&self.programs, self.user, self.folder.path(), self.port)?;
        self.wait()
    }

    /// Makes a user who needs a password on the port.
    pub fn add_user(&self, name: &str, password: &str) -> anyhow::Result<()> {
        let (name, password) = (name.replace('"', "\"\""), password.replace('\'', "''"));
        let sql = format!(
            "DO $$ BEGIN CREATE ROLE {WITH_PASSWORD}; EXCEPTION WHEN duplicate_object THEN END $$;
             CREATE USER \"{name}\" PASSWORD '{password}' IN ROLE {WITH_PASSWORD};
             GRANT CREATE ON DATABASE postgres TO \"{name}\";
             GRANT CREATE ON SCHEMA public TO \"{name}\"",
        );
        let made = command(&self.programs, "psql", self.user)
            .current_dir(self.folder.path())
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"])
            .arg(self.folder.path())
            .args(["-p", &self.port.unwrap_or(DEFAULT_PORT).to_string()])
            .args(["-c", &sql, "postgres"])
            .output()
            .context("cannot run psql")?;
        let said = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "psql failed: {}", said.trim());
        Ok(())
    }

    /// The port on 127.0.0.1, if it was started with one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The folder with the socket, which has the name of the port, or of the default port.
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

/// Starts the server on a folder that has its data.
fn spawn(
    programs: &Path,
    user: Option<User>,
    folder: &Path,
    port: Option<u16>,
) -> anyhow::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))?;
    let mut command = command(programs, "postgres", user);
    command
        .current_dir(folder)
        .arg("-D")
        .arg(folder.join("data"));
    command.arg("-k").arg(folder);
    match port {
        Some(port) => {
            command.args(["-c", "listen_addresses=127.0.0.1"]);
            command.args(["-c", &format!("port={port}")]);
        }
        None => {
            command.args(["-c", "listen_addresses="]);
        }
    }
    for setting in DURABLE {
        command.args(["-c", setting]);
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A ctrl-c reaches us, and the server when we are done with it.
        .process_group(0)
        .spawn()
        .context("cannot run postgres")
}

/// A port on which nobody listens now, and another at each call.
fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Other processes begin elsewhere.
    let first = process::id().wrapping_mul(97);
    let port = || {
        let at = first.wrapping_add(NEXT.fetch_add(61, Ordering::Relaxed));
        PORTS.start + (at % PORTS.len() as u32) as u16
    };
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut ports = iter::repeat_with(port).take(PORTS.len());
    ports.find(is_free).context("no port is free")
}

/// The processes that a process has started.
fn children(parent: u32) -> anyhow::Result<Vec<Pid>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").context("there is no /proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else {
            continue;
        };
        if let Some((_, its_parent)) = state_and_parent(pid)
            && its_parent == parent
        {
            children.extend(Pid::from_raw(pid));
        }
    }
    Ok(children)
}

fn is_running(pid: Pid) -> bool {
    // A zombie has nothing any longer.
    state_and_parent(pid.as_raw_pid()).is_some_and(|(state, _)| state != "Z" && state != "X")
}

fn state_and_parent(pid: i32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have spaces and brackets.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
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
