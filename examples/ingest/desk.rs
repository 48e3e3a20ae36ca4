//! The desk between the callers and the files: at it they take records and
//! leave receipts. Both change hands by the page, because waking a thread for
//! every single one would take longer than storing it.

use std::{mem, vec};

use tokio::sync::mpsc;
use tokio::task::{self, JoinHandle};

use crate::ledger::{Ledger, Receipt};
use crate::record::Record;
use crate::source::Records;

/// Records, or receipts, on a page.
const PAGE: usize = 256;

pub(crate) struct Desk {
    page: vec::IntoIter<Record>,
    pages: mpsc::Receiver<Vec<Record>>,
    receipts: Vec<Receipt>,
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
            page: Vec::new().into_iter(),
            pages,
            receipts: Vec::new(),
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
    pub(crate) async fn take(&mut self) -> Option<Record> {
        while !self.filed.is_closed() {
            match self.page.next() {
                Some(record) => return Some(record),
                None => self.page = self.pages.recv().await?.into_iter(),
            }
        }
        None
    }

    pub(crate) async fn leave(&mut self, receipt: Receipt) {
        self.receipts.push(receipt);
        if self.receipts.len() == PAGE {
            self.file().await;
        }
    }

    /// Closes the desk.
    pub(crate) async fn close(mut self) {
        self.file().await;
    }

    async fn file(&mut self) {
        let page = mem::replace(&mut self.receipts, Vec::with_capacity(PAGE));
        // A clerk who has failed takes no more, and will say why.
        let _ = self.filed.send(page).await;
    }
}

impl Staff {
    /// Waits until all is read and written, and returns the ledger.
    pub(crate) async fn close(self) -> anyhow::Result<Ledger> {
        self.reader.await??;
        self.clerk.await?
    }
}

fn read(mut file: Records, pages: mpsc::Sender<Vec<Record>>) -> anyhow::Result<()> {
    loop {
        let page = file.by_ref().take(PAGE).collect::<Result<Vec<_>, _>>()?;
        if page.is_empty() || pages.blocking_send(page).is_err() {
            return Ok(());
        }
    }
}

fn keep(mut ledger: Ledger, mut filed: mpsc::Receiver<Vec<Receipt>>) -> anyhow::Result<Ledger> {
    while let Some(page) = filed.blocking_recv() {
        for receipt in page {
            ledger.enter(receipt)?;
        }
    }
    ledger.close();
    Ok(ledger)
}
