//! A NATS server for tests and benches: a child process with JetStream, its files in a
//! temporary folder, on a free port of this machine's loopback.

#![cfg(unix)]
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a start may take on a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// How to get a server, for a test that has none.
pub const HOW_TO_GET: &str = "put `nats-server` on the PATH, set NATS_SERVER to its path, or \
                              run `tests/nats/fetch`";

/// A program and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    /// Major, minor and patch.
    pub version: (u32, u32, u32),
}

/// What a server is to be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `sync_interval: always`, which servers before 2.10 do not know.
    pub sync_always: bool,
    /// The most bytes of a message, with its headers; the server's default is 1 MiB.
    pub max_payload: Option<usize>,
    /// Who may connect; anybody, if empty.
    pub users: Vec<User>,
}

#[derive(Debug, Clone, Default)]
pub struct User {
    pub name: &'static str,
    pub password: &'static str,
    /// Subjects that it may not publish to, such as `$JS.API.STREAM.CREATE.>`.
    pub deny_publish: Vec<&'static str>,
}

pub struct Server {
    program: PathBuf,
    options: Options,
    port: u16,
    child: Child,
    // Last, so that it is removed after the server has stopped.
    folder: TempDir,
}

/// The servers that can be had, one for each version, those of NATS_SERVER first: paths,
/// as in PATH. Then the folders of the PATH, Debian's, and what `tests/nats/fetch` unpacked.
pub fn programs() -> Vec<Program> {
    let [wanted, path] = ["NATS_SERVER", "PATH"].map(|name| env::var_os(name).unwrap_or_default());
    let mut paths: Vec<_> = env::split_paths(&wanted).collect();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let fetched = ["nats-server", "nats-server-floor"].map(|folder| target.join(folder));
    let folders = env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .chain(fetched);
    paths.extend(folders.map(|folder| folder.join("nats-server")));
    let mut found: Vec<Program> = Vec::new();
    for path in paths.into_iter().filter(|path| path.is_file()) {
        if let Some(version) = version(&path)
            && found.iter().all(|other| other.version != version)
        {
            found.push(Program { path, version });
        }
    }
    found
}

/// The server to use where one is enough: that of NATS_SERVER, else the newest.
pub fn program() -> Option<Program> {
    let mut programs = programs();
    if env::var_os("NATS_SERVER").is_none() {
        programs.sort_by_key(|program| std::cmp::Reverse(program.version));
    }
    programs.into_iter().next()
}

/// The version of a server; `None` if it does not run.
fn version(path: &Path) -> Option<(u32, u32, u32)> {
    let output = Command::new(path).arg("--version").output().ok()?;
    let output = String::from_utf8_lossy(&output.stdout);
    let (_, version) = output.split_once(": v")?;
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    let mut part = || parts.next()?.parse().ok();
    Some((part()?, part()?, part()?))
}

impl Server {
    /// Returns once it takes connections.
    pub fn start(program: &Program, options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("nats-").tempdir()?;
        let mut server = Self {
            child: spawn(&program.path, &options, 0, folder.path())?,
            program: program.path.clone(),
            options,
            port: 0,
            folder,
        };
        server.wait()?;
        Ok(server)
    }

    /// The address without a user.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The address with a user of the options.
    pub fn url_of(&self, user: &User) -> String {
        let User { name, password, .. } = user;
        format!("nats://{name}:{password}@127.0.0.1:{}", self.port)
    }

    /// Ends it with SIGKILL. Does nothing if it has ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts one that was killed again, on the same files and the same port.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.child = spawn(&self.program, &self.options, self.port, self.folder.path())?;
        self.wait()
    }

    /// Has it neither answer nor close connections, until it is thawed.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// The folder with the files of JetStream.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.child);
        Ok(kill_process(pid, signal)?)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if self.child.try_wait()?.is_some() {
                let log = fs::read_to_string(self.folder.path().join("log"))?;
                bail!("nats-server ended: {}", log.trim());
            }
            if self.port == 0 {
                self.port = self.told_port().unwrap_or(0);
            }
            if self.port != 0 && greets(self.port) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(anyhow!("nats-server did not start"))
    }

    /// The port that the server chose, which it writes into a file of its number.
    fn told_port(&self) -> Option<u16> {
        let name = format!("nats-server_{}.ports", self.child.id());
        let ports = fs::read_to_string(self.folder.path().join(name)).ok()?;
        let (_, rest) = ports.split_once("127.0.0.1:")?;
        let (port, _) = rest.split_once(|c: char| !c.is_ascii_digit())?;
        port.parse().ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Port 0 has the server choose one.
fn spawn(program: &Path, options: &Options, port: u16, folder: &Path) -> anyhow::Result<Child> {
    let config = folder.join("config");
    fs::write(&config, configuration(options, port, folder)?)?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))?;
    Command::new(program)
        .current_dir(folder)
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A ctrl-c reaches us, and the server when we are done with it.
        .process_group(0)
        .spawn()
        .context("cannot run nats-server")
}

fn configuration(options: &Options, port: u16, folder: &Path) -> anyhow::Result<String> {
    let folder = folder.to_str().context("a path that is not UTF-8")?;
    ensure!(!folder.contains(['"', '\\']), "a path with a quote");
    let port = match port {
        0 => "-1".to_owned(),
        port => port.to_string(),
    };
    let mut text = format!("listen: \"127.0.0.1:{port}\"\nports_file_dir: \"{folder}\"\n");
    if let Some(bytes) = options.max_payload {
        writeln!(text, "max_payload: {bytes}")?;
        writeln!(text, "max_pending: {}", bytes.max(64 << 20))?;
    }
    writeln!(text, "jetstream {{\n  store_dir: \"{folder}/files\"")?;
    if options.sync_always {
        writeln!(text, "  sync_interval: always")?;
    }
    writeln!(text, "}}")?;
    if !options.users.is_empty() {
        writeln!(text, "authorization {{\n  users: [")?;
        for user in &options.users {
            let denied: Vec<_> = user
                .deny_publish
                .iter()
                .map(|subject| format!("\"{subject}\""))
                .collect();
            writeln!(
                text,
                "    {{ user: \"{}\", password: \"{}\", permissions: {{ publish: {{ allow: \
                 \">\", deny: [{}] }} }} }}",
                user.name,
                user.password,
                denied.join(", "),
            )?;
        }
        writeln!(text, "  ]\n}}")?;
    }
    Ok(text)
}

/// Whether a server says hello there, which it does once JetStream is up.
fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut hello = [0; 5];
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .and_then(|()| stream.read_exact(&mut hello))
        .is_ok_and(|()| hello == *b"INFO ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_found_starts_is_killed_and_starts_again_on_its_port() {
        let programs = programs();
        if programs.is_empty() {
            eprintln!("no NATS server: {HOW_TO_GET}");
        }
        for program in programs {
            let options = Options {
                sync_always: program.version >= (2, 10, 0),
                ..Options::default()
            };
            let mut server = Server::start(&program, options).unwrap();
            let url = server.url();
            server.kill().unwrap();
            assert!(!greets(server.port));
            server.restart().unwrap();
            assert_eq!(server.url(), url);
            assert!(server.files().is_dir());
            server.freeze().unwrap();
            server.thaw().unwrap();
            assert!(greets(server.port));
        }
    }
}
