//! qcowtool's benchmarks: the program `suite` runs whole commands beside `qemu-img`.
//! How to run it and how to read its figures: `benches/README.md`.
