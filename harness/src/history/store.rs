//! The file that keeps the history: SQLite, so that a run is added whole or not at all, and several
//! processes may add at once.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use driftgauge_reports::history::{HistoryCase, HistoryRun, HistoryTarget};
use driftgauge_reports::record::Verdict;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};
use serde::Deserialize;
use serde::de::IntoDeserializer;

use crate::output;

/// Tells our files from other SQLite files: `DGHS`.
const APPLICATION: i32 = 0x4447_4853;
/// Raised when the tables change.
const VERSION: i32 = 1;
/// Time for another process to finish what it writes.
const PATIENCE: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE runs (
    digest TEXT PRIMARY KEY, started INTEGER NOT NULL, day TEXT NOT NULL, driftgauge TEXT NOT NULL,
    model TEXT NOT NULL, model_files TEXT NOT NULL, exit_code INTEGER NOT NULL, move_limit REAL NOT NULL
) STRICT;
CREATE TABLE targets (
    run TEXT NOT NULL REFERENCES runs, place INTEGER NOT NULL, target TEXT NOT NULL,
    environment TEXT NOT NULL, forward REAL NOT NULL, PRIMARY KEY (run, place)
) STRICT;
CREATE TABLE cases (
    run TEXT NOT NULL, place INTEGER NOT NULL, name TEXT NOT NULL, tokens TEXT NOT NULL,
    verdict TEXT NOT NULL, errors TEXT NOT NULL, PRIMARY KEY (run, place, name),
    FOREIGN KEY (run, place) REFERENCES targets
) STRICT, WITHOUT ROWID;
";

/// Why a history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such file.
    #[error("there is no history at `{path}`")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The folder cannot be made.
    #[error("cannot write `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// Something else keeps its data there.
    #[error("`{path}` is no history of driftgauge: {problem}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        problem: &'static str,
    },
    /// A newer driftgauge wrote it.
    #[error(
        "`{path}` is a history of the newer version {version}, this driftgauge reads {VERSION}"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i32,
    },
    /// Another process writes to it all the time.
    #[error("`{path}` is locked by another process")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// SQLite cannot do it.
    #[error("cannot use the history `{path}`")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
    /// What is kept there is not what was written.
    #[error("the history `{path}` is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl StoreError {
    /// The next step for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing { .. } => {
                "`driftgauge history add RECORD` makes it; --db names another one"
            }
            Self::Io { .. } | Self::Foreign { .. } => "name another file with --db",
            Self::Newer { .. } => "update this driftgauge, or name another file with --db",
            Self::Locked { .. } => "wait for the other process, or end it",
            Self::Sqlite { .. } | Self::Damaged { .. } => {
                "restore the file from a copy, or name another one with --db and add the records again"
            }
        }
    }
}

/// An open history.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens a history for adding, and makes it where it is missing.
    ///
    /// # Errors
    /// [`StoreError`] that names the file.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let io_error = |source| StoreError::Io {
            path: path.to_owned(),
            source,
        };
        let folder = output::folder_of(path);
        std::fs::create_dir_all(folder).map_err(io_error)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut store = Self::connect(path, flags)?;
        let transaction = begin(&mut store.connection).map_err(sqlite(path))?;
        if is_new(&transaction).map_err(sqlite(path))? {
            transaction.execute_batch(SCHEMA).map_err(sqlite(path))?;
            let identity = [("application_id", APPLICATION), ("user_version", VERSION)];
            for (pragma, value) in identity {
                transaction
                    .pragma_update(None, pragma, value)
                    .map_err(sqlite(path))?;
            }
        }
        transaction.commit().map_err(sqlite(path))?;
        store.check()?;
        Ok(store)
    }

    /// Opens a history that is there, for reading.
    ///
    /// # Errors
    /// [`StoreError`] that names the file.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing {
                path: path.to_owned(),
            });
        }
        let store = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        store.check()?;
        Ok(store)
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        if path.is_dir() {
            return Err(StoreError::Foreign {
                path: path.to_owned(),
                problem: "it is a folder",
            });
        }
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(sqlite(path))?;
        connection.busy_timeout(PATIENCE).map_err(sqlite(path))?;
        connection
            .pragma_update(None, "foreign_keys", true)
            .map_err(sqlite(path))?;
        Ok(Self {
            path: path.to_owned(),
            connection,
        })
    }

    /// Whether the file is ours and of a version that we know.
    fn check(&self) -> Result<(), StoreError> {
        let pragma = |name| {
            let query = self
                .connection
                .pragma_query_value(None, name, |row| row.get::<_, i32>(0));
            query.map_err(sqlite(&self.path))
        };
        if pragma("application_id")? != APPLICATION {
            return Err(StoreError::Foreign {
                path: self.path.clone(),
                problem: "it is a database of another program",
            });
        }
        match pragma("user_version")? {
            VERSION => Ok(()),
            version => Err(StoreError::Newer {
                path: self.path.clone(),
                version,
            }),
        }
    }

    /// Adds a run, whole or not at all; `false` where it is there already.
    ///
    /// # Errors
    /// [`StoreError`]; the history is then as it was.
    pub fn add(&mut self, run: &HistoryRun) -> Result<bool, StoreError> {
        let path = self.path.clone();
        let transaction = begin(&mut self.connection).map_err(sqlite(&path))?;
        let is_added = insert(&transaction, run).map_err(sqlite(&path))?;
        transaction.commit().map_err(sqlite(&path))?;
        Ok(is_added)
    }

    /// All runs, the earliest first.
    ///
    /// # Errors
    /// [`StoreError`] that names the file.
    pub fn runs(&self) -> Result<Vec<HistoryRun>, StoreError> {
        let mut runs = self.heads().map_err(sqlite(&self.path))?;
        for run in &mut runs {
            let targets = self.targets(&run.digest).map_err(sqlite(&self.path))?;
            for (place, target, environment, forward) in targets {
                let environment = self.decoded(&environment)?;
                let rows = self.cases(&run.digest, place).map_err(sqlite(&self.path))?;
                let mut cases = std::collections::BTreeMap::new();
                for (name, tokens, verdict, errors) in rows {
                    let case = HistoryCase {
                        tokens,
                        verdict: self.verdict(&verdict)?,
                        errors: self.decoded(&errors)?,
                    };
                    cases.insert(name, case);
                }
                run.targets.push(HistoryTarget {
                    target,
                    environment,
                    forward,
                    cases,
                });
            }
        }
        Ok(runs)
    }

    fn heads(&self) -> rusqlite::Result<Vec<HistoryRun>> {
        let mut query = self.connection.prepare(
            "SELECT digest, started, day, driftgauge, model, model_files, exit_code, move_limit
             FROM runs ORDER BY started, digest",
        )?;
        let rows = query.query_map([], |row| {
            Ok(HistoryRun {
                digest: row.get(0)?,
                started: row.get::<_, i64>(1)?.unsigned_abs(),
                day: row.get(2)?,
                driftgauge: row.get(3)?,
                model: row.get(4)?,
                model_files: row.get(5)?,
                exit_code: row.get(6)?,
                move_limit: row.get(7)?,
                targets: Vec::new(),
            })
        })?;
        rows.collect()
    }

    fn targets(&self, run: &str) -> rusqlite::Result<Vec<(i64, String, String, f64)>> {
        let mut query = self.connection.prepare(
            "SELECT place, target, environment, forward FROM targets WHERE run = ? ORDER BY place",
        )?;
        let rows = query.query_map([run], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
        rows.collect()
    }

    fn cases(
        &self,
        run: &str,
        place: i64,
    ) -> rusqlite::Result<Vec<(String, String, String, String)>> {
        let mut query = self.connection.prepare(
            "SELECT name, tokens, verdict, errors FROM cases WHERE run = ? AND place = ?",
        )?;
        let rows = query.query_map(params![run, place], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
        rows.collect()
    }

    fn decoded<T: for<'a> Deserialize<'a>>(&self, json: &str) -> Result<T, StoreError> {
        serde_json::from_str(json).map_err(|error| self.damaged(error.to_string()))
    }

    fn verdict(&self, word: &str) -> Result<Verdict, StoreError> {
        Verdict::deserialize(word.into_deserializer())
            .map_err(|error: serde::de::value::Error| self.damaged(error.to_string()))
    }

    fn damaged(&self, problem: String) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            problem,
        }
    }
}

/// A transaction that may write from its beginning on, so that no other one gets between.
fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// Whether nobody has written anything into the file.
fn is_new(transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = transaction.query_row(tables, [], |row| row.get(0))?;
    let identity: i32 = transaction.pragma_query_value(None, "application_id", |row| row.get(0))?;
    Ok(tables == 0 && identity == 0)
}

fn insert(transaction: &Transaction<'_>, run: &HistoryRun) -> rusqlite::Result<bool> {
    let json_error = |error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
    let known = "SELECT count(*) FROM runs WHERE digest = ?";
    let known: i64 = transaction.query_row(known, [&run.digest], |row| row.get(0))?;
    if known > 0 {
        return Ok(false);
    }
    transaction.execute(
        "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            run.digest,
            i64::try_from(run.started).unwrap_or(i64::MAX),
            run.day,
            run.driftgauge,
            run.model,
            run.model_files,
            run.exit_code,
            run.move_limit
        ],
    )?;
    let mut add_case = transaction.prepare("INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?)")?;
    for (place, target) in (0i64..).zip(&run.targets) {
        let environment = serde_json::to_string(&target.environment).map_err(json_error)?;
        transaction.execute(
            "INSERT INTO targets VALUES (?, ?, ?, ?, ?)",
            params![
                run.digest,
                place,
                target.target,
                environment,
                target.forward
            ],
        )?;
        for (name, case) in &target.cases {
            let errors = serde_json::to_string(&case.errors).map_err(json_error)?;
            let verdict = case.verdict.name();
            add_case.execute(params![
                run.digest,
                place,
                name,
                case.tokens,
                verdict,
                errors
            ])?;
        }
    }
    Ok(true)
}

/// What an error of SQLite means for the file.
fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
    move |source| {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::Locked { path }
            }
            Some(ErrorCode::NotADatabase) => StoreError::Foreign {
                path,
                problem: "it is no SQLite file",
            },
            _ => StoreError::Sqlite { path, source },
        }
    }
}
