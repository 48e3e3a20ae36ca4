//! The desk between the callers and the files: at it they take records and
//! leave receipts. Both change hands by the page, because waking a thread for
//! every single one would take longer than storing it.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{self, mpsc};
use tokio::task::{self, JoinHandle};

use crate::ledger::{Ledger, Receipt};
use crate::record::{Page, Record, Rest};
use crate::source::{PAGE, Records};

pub(crate) struct Desk {
    page: Mutex<Rest>,
    pages: sync::Mutex<mpsc::Receiver<Page>>,
    receipts: Mutex<Vec<Receipt>>,
    filed: mpsc::Sender<Vec<Receipt>>,
}

/// The two threads behind the desk, which end when it is gone.
pub(crate) struct Staff {
    reader: JoinHandle<anyhow::Result<()>>,
    clerk: JoinHandle<anyhow::Result<Ledger>>,
}

impl Desk {
    /// Opens a desk, with a thread that reads the file, never more than two
    /// pages ahead, and one that keeps the ledger, because both block.
    pub(crate) fn open(file: Records, ledger: Ledger) -> (Self, Staff) {
        let (sender, pages) = mpsc::channel(1);
        let (filed, receiver) = mpsc::channel(1);
        let desk = Self {
            page: Mutex::new(Page::new(0).into_iter()),
            pages: sync::Mutex::new(pages),
            receipts: Mutex::default(),
            filed,
        };
        let staff = Staff {
            reader: task::spawn_blocking(|| read(file, sender)),
            clerk: task::spawn_blocking(|| keep(ledger, receiver)),
        };
        (desk, staff)
    }

    /// Returns the next record, if there is one and somebody to write down
    /// what becomes of it.
    pub(crate) async fn take(&self) -> Option<Record> {
        while !self.filed.is_closed() {
            if let Some(record) = lock(&self.page).next() {
                return Some(record);
            }
            let mut pages = self.pages.lock().await;
            // Unless somebody has turned the page in the meantime.
            if lock(&self.page).is_empty() {
                let page = pages.recv().await?;
                *lock(&self.page) = page.into_iter();
            }
        }
        None
    }

    pub(crate) async fn leave(&self, receipt: Receipt) {
        let page = {
            let mut receipts = lock(&self.receipts);
            receipts.push(receipt);
            (receipts.len() == PAGE).then(|| mem::replace(&mut *receipts, Vec::with_capacity(PAGE)))
        };
        if let Some(page) = page {
            self.file(page).await;
        }
    }

    /// Closes the desk.
    pub(crate) async fn close(self) {
        let page = mem::take(&mut *lock(&self.receipts));
        self.file(page).await;
    }

    async fn file(&self, page: Vec<Receipt>) {
        // A clerk who has failed takes no more, and will say why.
        let _ = self.filed.send(page).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Staff {
    /// Waits until all is read and written, and returns the ledger.
    pub(crate) async fn close(self) -> anyhow::Result<Ledger> {
        self.reader.await??;
        self.clerk.await?
    }
}

fn read(file: Records, pages: mpsc::Sender<Page>) -> anyhow::Result<()> {
    for page in file {
        if pages.blocking_send(page?).is_err() {
            break;
        }
    }
    Ok(())
}

fn keep(mut ledger: Ledger, mut filed: mpsc::Receiver<Vec<Receipt>>) -> anyhow::Result<Ledger> {
    while let Some(page) = filed.blocking_recv() {
        ledger.enter(page)?;
    }
    ledger.close();
    Ok(ledger)
}
