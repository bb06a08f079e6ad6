//! The stream of one connection, encrypted or not.

use std::sync::{Arc, OnceLock};

use crate::transport::Transport;

/// What a connection sends and receives by.
#[derive(Debug)]
pub(crate) struct Stream {
    transport: Arc<dyn Transport>,
    /// What took its place when encryption began.
    encrypted: OnceLock<Arc<dyn Transport>>,
}

impl Stream {
    pub(super) fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, encrypted: OnceLock::new() }
    }

    pub(super) fn transport(&self) -> &dyn Transport {
        &**self.encrypted.get().unwrap_or(&self.transport)
    }

    /// From now on everything goes through what `encrypt` makes of the stream.
    #[cfg(feature = "tls")]
    pub(super) fn encrypt<T: Transport + 'static>(
        &self,
        encrypt: impl FnOnce(Arc<dyn Transport>) -> std::io::Result<T>,
    ) -> std::io::Result<()> {
        let encrypted = encrypt(Arc::clone(&self.transport))?;
        let _ = self.encrypted.set(Arc::new(encrypted));
        Ok(())
    }

    /// Receives nothing more.
    pub(super) fn stop_receiving(&self) {
        self.transport.stop_receiving();
    }

    /// Ends the stream now.
    pub(super) fn cut(&self) {
        self.transport.cut();
    }
}
