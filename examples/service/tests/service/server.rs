//! A PostgreSQL of the tests: a child process in a temporary folder, reached by a socket
//! in that folder and by nothing else.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use tempfile::TempDir;
use tokio_postgres::NoTls;

/// How long a start may take on a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian has the programs of all versions, which it keeps off the PATH.
const DEBIAN: &str = "/usr/lib/postgresql";

pub struct Server {
    programs: PathBuf,
    user: Option<User>,
    child: Child,
    /// Removed last.
    folder: TempDir,
}

/// Whom to run as, because PostgreSQL refuses to run as root.
#[derive(Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

impl Server {
    /// Returns once it takes connections; `None` where it is not installed.
    pub fn start() -> Option<Self> {
        let programs = programs()?;
        // In the temporary folder itself, as a socket's path has to be short.
        let folder = tempfile::Builder::new().prefix("pg-").tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        // Who owns what we create is who we are.
        let user = (fs::metadata(folder.path()).unwrap().uid() == 0).then(unprivileged);
        if let Some(user) = user {
            chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
        }

        let data = folder.path().join("data");
        let made = command(&programs, "initdb", user)
            .current_dir(folder.path())
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
            .args(["--locale=C", "--pgdata"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb failed: {made:?}");

        let log = File::create(folder.path().join("log")).unwrap();
        let child = command(&programs, "postgres", user)
            .current_dir(folder.path())
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(folder.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=on"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // A ctrl-c reaches us, and the server when we are done with it.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut server = Self {
            programs,
            user,
            child,
            folder,
        };
        server.wait();
        Some(server)
    }

    fn wait(&mut self) {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if self.child.try_wait().unwrap().is_some() {
                let log = fs::read_to_string(self.folder.path().join("log"));
                panic!("postgres ended: {log:?}");
            }
            let ready = command(&self.programs, "pg_isready", self.user)
                .arg("-q")
                .arg("-h")
                .arg(self.folder.path())
                .status();
            if ready.is_ok_and(|status| status.success()) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("postgres did not start within {PATIENCE:?}");
    }

    /// Makes an empty database and returns its URL.
    pub async fn database(&self, name: &str) -> String {
        self.execute(&format!("CREATE DATABASE {name}")).await;
        self.url(name)
    }

    /// Ends all connections but our own, as a restart of the server would.
    pub async fn hang_up(&self) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
        self.execute(sql).await;
    }

    async fn execute(&self, sql: &str) {
        let (client, connection) = tokio_postgres::connect(&self.url("postgres"), NoTls)
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap();
        drop(client);
        connection.await.unwrap().unwrap();
    }

    fn url(&self, database: &str) -> String {
        let folder = self.folder.path().to_str().unwrap();
        format!(
            "postgres://postgres@{}/{database}",
            folder.replace('/', "%2F")
        )
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

/// The folder with the programs, Debian's newest or that on the PATH.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let mut folders: Vec<_> = versions.map(|entry| entry.path().join("bin")).collect();
    folders.sort();
    folders.reverse();
    let path = env::var_os("PATH").unwrap_or_default();
    folders.extend(env::split_paths(&path));
    folders
        .into_iter()
        .find(|folder| folder.join("initdb").is_file())
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

fn unprivileged() -> User {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let find = |name| {
        let mut lines = passwd.lines().map(|line| line.split(':'));
        let mut fields = lines.find_map(|mut line| (line.next() == Some(name)).then_some(line))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { uid, gid })
    };
    let user = ["postgres", "nobody"].into_iter().find_map(find);
    user.expect("a user `postgres` or `nobody` to run as")
}
