//! A plain raw-deflate decoder (RFC 1951) that notes how far back the stream looks.

/// Decodes `input` and returns the data with the longest distance of any match.
pub(super) fn inflate(input: &[u8]) -> (Vec<u8>, usize) {
    let mut bits = Bits { input, at: 0 };
    let (mut output, mut longest) = (Vec::new(), 0);
    loop {
        let last = bits.take(1) == 1;
        let (literals, distances) = match bits.take(2) {
            0 => {
                bits.at = bits.at.next_multiple_of(8);
                let len = bits.take(16);
                assert_eq!(bits.take(16), len ^ 0xffff);
                (0..len).for_each(|_| output.push(bits.take(8) as u8));
                if last {
                    return (output, longest);
                }
                continue;
            }
            1 => {
                let lengths: Vec<usize> = (0..288)
                    .map(|symbol| match symbol {
                        0..144 => 8,
                        144..256 => 9,
                        256..280 => 7,
                        _ => 8,
                    })
                    .collect();
                (Huffman::new(&lengths), Huffman::new(&[5; 30]))
            }
            2 => dynamic_codes(&mut bits),
            _ => panic!("bad block type"),
        };
        loop {
            match literals.decode(&mut bits) {
                symbol @ 0..256 => output.push(symbol as u8),
                256 => break,
                symbol => {
                    let len = match symbol - 257 {
                        28 => 258,
                        n @ 0..8 => n + 3,
                        n => with_extra(n, 4, &mut bits) + 3,
                    };
                    let distance = match distances.decode(&mut bits) {
                        n @ 0..4 => n + 1,
                        n => with_extra(n, 2, &mut bits) + 1,
                    };
                    longest = longest.max(distance);
                    (0..len).for_each(|_| output.push(output[output.len() - distance]));
                }
            }
        }
        if last {
            return (output, longest);
        }
    }
}

/// The value of the `n`th symbol, of which groups of `step` share a number of extra bits.
fn with_extra(n: usize, step: usize, bits: &mut Bits<'_>) -> usize {
    let extra = n / step - 1;
    ((step + n % step) << extra) + bits.take(extra)
}

fn dynamic_codes(bits: &mut Bits<'_>) -> (Huffman, Huffman) {
    let (literals, distances, codes) = (bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4);
    let mut lengths = [0; 19];
    let order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    order.iter().take(codes).for_each(|&symbol| lengths[symbol] = bits.take(3));
    let code = Huffman::new(&lengths);
    let mut lengths: Vec<usize> = Vec::new();
    while lengths.len() < literals + distances {
        let (value, count) = match code.decode(bits) {
            16 => (*lengths.last().unwrap(), 3 + bits.take(2)),
            17 => (0, 3 + bits.take(3)),
            18 => (0, 11 + bits.take(7)),
            length => (length, 1),
        };
        lengths.extend(std::iter::repeat_n(value, count));
    }
    let (literals, distances) = lengths.split_at(literals);
    (Huffman::new(literals), Huffman::new(distances))
}

struct Bits<'a> {
    input: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next `count` bits, the first of them the least significant.
    fn take(&mut self, count: usize) -> usize {
        (0..count).fold(0, |value, n| {
            let bit = self.input[self.at / 8] >> (self.at % 8) & 1;
            self.at += 1;
            value | usize::from(bit) << n
        })
    }
}

/// A canonical code: how many codes each length has, and the symbols in the codes' order.
struct Huffman {
    counts: [usize; 16],
    symbols: Vec<usize>,
}

impl Huffman {
    fn new(lengths: &[usize]) -> Self {
        let mut counts = [0; 16];
        lengths.iter().filter(|&&len| len > 0).for_each(|&len| counts[len] += 1);
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|&n| lengths[n] > 0).collect();
        symbols.sort_by_key(|&symbol| (lengths[symbol], symbol));
        Self { counts, symbols }
    }

    fn decode(&self, bits: &mut Bits<'_>) -> usize {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code |= bits.take(1);
            if code < first + count {
                return self.symbols[index + code - first];
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        panic!("bad code")
    }
}
