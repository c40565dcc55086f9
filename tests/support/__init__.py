"""What the whole suite shares: cases (which problems), inputs (their tensors), tolerance and truth (right or wrong)."""
