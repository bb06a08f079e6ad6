//! The graph of backing-file dependencies. Pure.
//!
//! Headers are not trusted: backing files may form loops, and chains may be of any length, so
//! nothing here recurses, and everything takes time in proportion to images and links.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::value::{Image, Key, Survey};

/// The images of a survey, by number, and their dependencies.
#[derive(Debug)]
pub struct Graph<'a> {
    images: &'a [Image],
    index: HashMap<&'a Key, usize>,
    below: Vec<Vec<usize>>,
    above: Vec<Vec<usize>>,
    /// From the bottoms up; without those above a loop.
    order: Vec<usize>,
}

impl<'a> Graph<'a> {
    /// The graph of all images and the links between them.
    pub fn new(survey: &'a Survey) -> Self {
        let images = survey.images.as_slice();
        let index: HashMap<&Key, usize> =
            images.iter().enumerate().map(|(at, image)| (&image.key, at)).collect();
        let below: Vec<Vec<usize>> = images
            .iter()
            .map(|image| {
                let to: BTreeSet<usize> =
                    image.links.iter().filter_map(|link| index.get(&link.to).copied()).collect();
                to.into_iter().collect()
            })
            .collect();
        let mut above = vec![Vec::new(); images.len()];
        for (at, under) in below.iter().enumerate() {
            for base in under {
                if let Some(users) = above.get_mut(*base) {
                    users.push(at);
                }
            }
        }
        let order = sorted(&below, &above);
        Self { images, index, below, above, order }
    }

    /// All images, in the order of their numbers.
    pub fn images(&self) -> &'a [Image] {
        self.images
    }

    /// The image of this number.
    pub fn image(&self, at: usize) -> Option<&'a Image> {
        self.images.get(at)
    }

    /// The number of an image.
    pub fn find(&self, key: &Key) -> Option<usize> {
        self.index.get(key).copied()
    }

    /// What the image needs directly.
    pub fn below(&self, at: usize) -> &[usize] {
        self.below.get(at).map_or(&[], Vec::as_slice)
    }

    /// What needs the image directly.
    pub fn above(&self, at: usize) -> &[usize] {
        self.above.get(at).map_or(&[], Vec::as_slice)
    }

    /// Everything that depends on these, directly or not, the nearest first, each with the number of steps.
    /// The images themselves are not among it.
    pub fn dependents(&self, of: &[usize]) -> Vec<(usize, usize)> {
        let mut seen: HashSet<usize> = of.iter().copied().collect();
        let mut waiting: VecDeque<(usize, usize)> = of.iter().map(|at| (*at, 0)).collect();
        let mut found = Vec::new();
        while let Some((at, steps)) = waiting.pop_front() {
            for user in self.above(at) {
                if seen.insert(*user) {
                    let steps = steps.saturating_add(1);
                    found.push((*user, steps));
                    waiting.push_back((*user, steps));
                }
            }
        }
        found
    }

    /// The circles, each as the images on it, from one to the one below.
    pub fn circles(&self) -> Vec<Vec<usize>> {
        let sound: HashSet<usize> = self.order.iter().copied().collect();
        let mut visited = HashSet::new();
        let mut circles = Vec::new();
        for start in (0..self.images.len()).filter(|at| !sound.contains(at)) {
            // Each of these depends on another of these, so that a walk down comes back to where it was.
            let mut walk = Vec::new();
            let mut at = start;
            while visited.insert(at) {
                walk.push(at);
                match self.below(at).iter().find(|base| !sound.contains(base)) {
                    Some(base) => at = *base,
                    None => break,
                }
            }
            if let Some(first) = walk.iter().position(|step| *step == at) {
                circles.push(walk.split_off(first));
            }
        }
        circles
    }

    /// How many images deep the chain of each is, itself included; 0 where it has no end.
    pub fn depths(&self) -> Vec<usize> {
        let deepest = |depths: &[usize]| depths.iter().max().copied().unwrap_or(0);
        self.upwards(|_, below: &[usize]| deepest(below).saturating_add(1))
    }

    /// Bytes that are allocated for each image and everything below it; 0 where the chain has no end.
    pub fn chain_bytes(&self) -> Vec<u64> {
        self.upwards(|image, below: &[u64]| {
            below.iter().fold(image.status.allocated, |sum, bytes| sum.saturating_add(*bytes))
        })
    }

    /// How many active layers depend on each, directly or not; 1 for those themselves.
    /// An image with two names that lead to two bases counts for both.
    pub fn tops(&self) -> Vec<u64> {
        let mut tops = vec![0_u64; self.images.len()];
        for at in self.order.iter().rev() {
            let users = self.above(*at).iter().filter_map(|user| tops.get(*user));
            let sum = users.fold(0_u64, |sum, count| sum.saturating_add(*count)).max(1);
            if let Some(count) = tops.get_mut(*at) {
                *count = sum;
            }
        }
        tops
    }

    /// Works something out for every image from what it is for those below.
    fn upwards<T: Copy + Default>(&self, of: impl Fn(&Image, &[T]) -> T) -> Vec<T> {
        let mut values = vec![T::default(); self.images.len()];
        for at in &self.order {
            let Some(image) = self.image(*at) else { continue };
            let below: Vec<T> =
                self.below(*at).iter().filter_map(|base| values.get(*base).copied()).collect();
            if let Some(value) = values.get_mut(*at) {
                *value = of(image, &below);
            }
        }
        values
    }
}

/// Every image after its backing files. Those above a loop are left out.
fn sorted(below: &[Vec<usize>], above: &[Vec<usize>]) -> Vec<usize> {
    let mut open: Vec<usize> = below.iter().map(Vec::len).collect();
    let mut order: Vec<usize> =
        open.iter().enumerate().filter(|(_, count)| **count == 0).map(|(at, _)| at).collect();
    let mut next = 0;
    while let Some(at) = order.get(next).copied() {
        next = next.saturating_add(1);
        for user in above.get(at).into_iter().flatten() {
            if let Some(count) = open.get_mut(*user) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    order.push(*user);
                }
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::value::{Link, Name, Need, Presence, Status};

    fn key(nth: usize) -> Key {
        Key::File { device: 1, inode: nth as u64 }
    }

    /// Images by number, each with the numbers of those that it depends on; each takes 10 bytes.
    fn survey(below: &[&[usize]]) -> Survey {
        let image = |(nth, below): (usize, &&[usize])| {
            let path = format!("/v/{nth}").into();
            let name = Name { symlink: false, path };
            let mut image = Image::new(key(nth), name, Presence::Here);
            image.status = Status { allocated: 10, ..Status::default() };
            image.links = below
                .iter()
                .map(|to| Link {
                    need: Need::Backing,
                    through: "/v".into(),
                    name: format!("/v/{to}").into(),
                    to: key(*to),
                })
                .collect();
            image
        };
        Survey { images: below.iter().enumerate().map(image).collect(), ..Survey::default() }
    }

    #[test]
    fn depths_users_and_bytes_of_a_tree() {
        // 0 <- 1 <- 2, 3 and 0 <- 4; 5 has no backing file.
        let survey = survey(&[&[], &[0], &[1], &[1], &[0], &[]]);
        let graph = Graph::new(&survey);
        assert_eq!(graph.depths(), [1, 2, 3, 3, 2, 1]);
        assert_eq!(graph.tops(), [3, 2, 1, 1, 1, 1]);
        assert_eq!(graph.chain_bytes(), [10, 20, 30, 30, 20, 10]);
        assert_eq!(graph.dependents(&[0]), [(1, 1), (4, 1), (2, 2), (3, 2)]);
        assert_eq!(graph.dependents(&[1]), [(2, 1), (3, 1)]);
        assert!(graph.dependents(&[5]).is_empty() && graph.circles().is_empty());
    }

    #[test]
    fn circles_are_found_once_and_what_stands_on_them_is_not_one() {
        // 0 -> 1 -> 2 -> 0, 3 depends on them, 4 on itself, 5 and 6 are sound.
        let survey = survey(&[&[1], &[2], &[0], &[0], &[4], &[], &[5]]);
        let graph = Graph::new(&survey);
        let mut circles = graph.circles();
        circles.iter_mut().for_each(|circle| circle.sort_unstable());
        assert_eq!(circles, [vec![0, 1, 2], vec![4]]);
        assert_eq!(graph.depths(), [0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(graph.dependents(&[2]), [(1, 1), (0, 2), (3, 3)]);
    }

    proptest! {
        #[test]
        fn any_graph_is_walked_to_an_end(links in proptest::collection::vec((0..30_usize, 0..30_usize), 0..60)) {
            let mut below = vec![Vec::new(); 30];
            for (from, to) in links {
                below[from].push(to);
            }
            let slices: Vec<&[usize]> = below.iter().map(Vec::as_slice).collect();
            let survey = survey(&slices);
            let graph = Graph::new(&survey);
            let reaches = |from: usize, to: usize| graph.dependents(&[to]).iter().any(|(at, _)| *at == from);
            for circle in graph.circles() {
                for pair in circle.windows(2) {
                    prop_assert!(below[pair[0]].contains(&pair[1]));
                }
                prop_assert!(below[*circle.last().unwrap()].contains(&circle[0]));
            }
            // An image is deeper than its backing file, unless there is no end below.
            let depths = graph.depths();
            for (from, under) in below.iter().enumerate() {
                for to in under {
                    prop_assert!(depths[from] == 0 || depths[from] > depths[*to]);
                    prop_assert!(from == *to || reaches(from, *to));
                }
            }
            let endless = depths.iter().filter(|depth| **depth == 0).count();
            prop_assert_eq!(endless == 0, graph.circles().is_empty());
        }
    }
}
