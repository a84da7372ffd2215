//! A thread that starts processes which outlive a test. The kernel kills a process when the thread that started it ends. A test's
//! thread ends with the test, but this thread ends with this process.

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

/// Runs `work` on that thread.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let work = Box::new(move || _ = sender.send(work()));
    KEEPER.lock().unwrap().send(work).unwrap();
    receiver.recv().unwrap()
}
