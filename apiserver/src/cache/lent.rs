//! Watches whose clients do not read.
//!
//! A connection asks for bytes when it can send some. While a client reads nothing, its watch is not
//! asked: it sees neither that its time has passed nor that the cache has closed it, and would keep
//! its part of the state and the events that wait until the connection breaks. So its cache takes
//! it back. Upstream lets go of the events of a watcher that is too slow, too; its client learns
//! of it as ours does, when it reads on: the watch ends, and it watches anew.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The watch's: it has been asked for bytes, and has none.
    Watch,
    /// The client's, since `ages` calls of [`Loans::age`].
    Client { ages: u8 },
}

struct Loan {
    turn: Turn,
    /// `None`: at its end, or taken back.
    stream: Option<Pin<Box<dyn Stream<Item = Bytes> + Send>>>,
}

impl Loan {
    /// Takes the stream back when the client has left it waiting since the last call.
    fn age(&mut self) -> Option<Pin<Box<dyn Stream<Item = Bytes> + Send>>> {
        match &mut self.turn {
            Turn::Watch => None,
            Turn::Client { ages: 0 } => {
                self.turn = Turn::Client { ages: 1 };
                None
            }
            Turn::Client { .. } => self.stream.take(),
        }
    }
}

/// A stream for a client. It ends early when the client does not read it.
pub struct Lent(Arc<Mutex<Loan>>);

impl Stream for Lent {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut loan = self.0.lock();
        loan.turn = Turn::Watch;
        let Some(stream) = &mut loan.stream else { return Poll::Ready(None) };
        let chunk = ready!(stream.as_mut().poll_next(context));
        loan.turn = Turn::Client { ages: 0 };
        if chunk.is_none() {
            loan.stream = None;
        }
        Poll::Ready(chunk)
    }
}

/// The streams that are lent.
#[derive(Default)]
pub(super) struct Loans(Mutex<Vec<Weak<Mutex<Loan>>>>);

impl Loans {
    pub(super) fn lend(&self, stream: impl Stream<Item = Bytes> + Send + 'static) -> Lent {
        let turn = Turn::Client { ages: 0 };
        let loan = Arc::new(Mutex::new(Loan { turn, stream: Some(Box::pin(stream)) }));
        let mut loans = self.0.lock();
        if loans.len() == loans.capacity() {
            loans.retain(|loan| loan.strong_count() > 0);
        }
        loans.push(Arc::downgrade(&loan));
        Lent(loan)
    }

    /// Takes back what no client has read since the last call.
    pub(super) fn age(&self) {
        let mut live = Vec::new();
        self.0.lock().retain(|loan| loan.upgrade().map(|loan| live.push(loan)).is_some());
        for loan in live {
            // One that is held is being read.
            let taken = loan.try_lock().and_then(|mut loan| loan.age());
            if taken.is_some() {
                tracing::debug!("a watch that its client does not read ends");
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use futures::channel::mpsc::unbounded;

    use super::*;

    #[tokio::test]
    async fn a_stream_that_nobody_reads_is_taken_back() {
        let loans = Loans::default();
        let (sender, receiver) = unbounded();
        // Its sender sees when it is let go.
        let mut lent = loans.lend(receiver);
        for _ in 0..3 {
            sender.unbounded_send(Bytes::from_static(b"x")).expect("a reader");
        }
        loans.age();
        assert!(lent.next().await.is_some());
        loans.age();
        assert!(!sender.is_closed(), "it was read since");
        assert!(lent.next().await.is_some());
        loans.age();
        loans.age();
        assert!(sender.is_closed());
        assert!(lent.next().await.is_none() && lent.next().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_that_has_nothing_to_say_stays() {
        let loans = Loans::default();
        let (sender, receiver) = unbounded();
        let mut lent = loans.lend(receiver);
        assert!(futures::poll!(lent.next()).is_pending());
        (0..5).for_each(|_| loans.age());
        sender.unbounded_send(Bytes::from_static(b"x")).expect("a reader");
        assert!(lent.next().await.is_some());
        drop(sender);
        assert!(lent.next().await.is_none());
    }

    #[tokio::test]
    async fn streams_that_have_ended_are_forgotten() {
        let loans = Loans::default();
        let _kept = loans.lend(futures::stream::pending());
        (0..1000).for_each(|_| drop(loans.lend(futures::stream::pending())));
        assert!(loans.len() < 10, "{}", loans.len());
        loans.age();
        assert_eq!(loans.len(), 1);
    }
}
