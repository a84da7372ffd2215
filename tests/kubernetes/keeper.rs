//! The thread that starts all processes. The kernel ends a process with the thread that started it, and a test's thread
//! ends with its test; this one ends with us.

use std::{
    sync::{
        LazyLock, Mutex,
        mpsc::{self, Sender},
    },
    thread,
};

type Work = Box<dyn FnOnce() + Send>;

static KEEPER: LazyLock<Mutex<Sender<Work>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Work>();
    thread::spawn(move || receiver.into_iter().for_each(|work| work()));
    Mutex::new(sender)
});

/// Does this on that thread.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let work = Box::new(move || _ = sender.send(work()));
    KEEPER.lock().unwrap().send(work).unwrap();
    receiver.recv().unwrap()
}
